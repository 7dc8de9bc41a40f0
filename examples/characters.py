"""A language model of characters, on Python's own help texts. Run: python examples/characters.py (about a minute)."""

from pydoc_data.topics import topics

import torch
from rich.progress import track

from fanin.nn import TransformerLM, cross_entropy

text = "\n".join(topics.values())
letters = sorted(set(text))
ids = torch.tensor([letters.index(c) for c in text])
model = TransformerLM(len(letters), context_length=64, d_model=128, num_layers=4, num_heads=4)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in track(range(300), "training"):
    batch = ids[torch.randint(len(ids) - 65, (32, 1)) + torch.arange(65)]
    loss = cross_entropy(model(batch[:, :-1]), batch[:, 1:])
    optimizer.zero_grad(), loss.backward(), optimizer.step()
written = model.generate(ids[None, :20], 200, temperature=0.7)[0]
print(f"loss {loss.item():.2f}\n" + "".join(letters[i] for i in written))
