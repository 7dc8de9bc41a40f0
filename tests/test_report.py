from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import fanin
from fanin import Finding, InvalidValueError, Layer, Signal, SignalReport
from fanin._report import Coverage


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    layers = [m for _ in range(30) for m in (nn.Linear(16, 16), nn.ReLU())]
    return fanin.probe(nn.Sequential(*layers), torch.randn(8, 16))


def test_json_both_ways(report):
    again = SignalReport.from_json(report.to_json())
    assert again == report
    assert again.modules == report.modules
    json.loads(report.to_json())


def test_numbers_that_are_not_finite_survive_json():
    made = SignalReport(
        (Layer("a", "linear", (2, 2), None, Signal(act_rms=math.inf, grad_rms=-math.inf)),)
    )
    assert SignalReport.from_json(made.to_json()) == made


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "fanin-report-1"}'])
def test_unreadable_json(text):
    with pytest.raises(InvalidValueError):
        SignalReport.from_json(text)


def test_records_are_checked():
    with pytest.raises(InvalidValueError, match="act_rms must be a number"):
        Signal(act_rms="1")
    with pytest.raises(InvalidValueError, match="severity must be one of error, warning"):
        Finding("FAN101", "fatal", "", "", "", "")
    with pytest.raises(InvalidValueError, match="outputs must point"):
        SignalReport((), outputs=(("a", 0),))


def test_modules_are_the_leaves(report):
    assert set(report.modules) == {str(i) for i in range(60)}
    assert report.modules["59"] is report.layers[-1]


def test_ok_means_no_error():
    warning = Finding("FAN106", "warning", "", "m", "w", "f")
    assert SignalReport((), (warning,)).ok
    assert not SignalReport((), (Finding("FAN101", "error", "", "m", "w", "f"),)).ok


def test_prints(report):
    text = str(report)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "covered 60/60 ops" in text
    for f in report.findings:
        assert f.code in text
    assert "<table" in report._repr_html_()
    assert str(Coverage(3, 4, ("fft x1",))) == "covered 3/4 ops, not measured: fft x1"


def test_plot(report):
    figure = report.plot()
    assert len(figure.axes) == 3
    assert all(axes.lines for axes in figure.axes)
