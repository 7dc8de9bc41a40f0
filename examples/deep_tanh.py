"""A 200-layer tanh network that learns. Run: python examples/deep_tanh.py (about 15 s)."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import fanin

x, y = map(torch.tensor, load_digits(return_X_y=True))
x = ((x - x.mean()) / x.std()).float()
hidden = [m for _ in range(198) for m in (nn.Linear(100, 100), nn.Tanh())]
model = nn.Sequential(nn.Linear(64, 100), nn.Tanh(), *hidden, nn.Linear(100, 10))

plan = fanin.initialize_(model, x[:128])  # without this line the loss stays at ln 10 = 2.303
print(plan["0.weight"].reasons[0])

torch.manual_seed(0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
for step in range(1, 201):
    rows = torch.randint(len(x), (128,))
    loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step == 1 or step % 50 == 0:
        print(f"step {step:3}  loss {loss.item():.3f}")
