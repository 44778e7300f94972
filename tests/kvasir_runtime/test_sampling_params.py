from typing import Any

import pytest

from kvasir_runtime.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"temperature": -0.1}, "temperature must be between 0 and 100, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be between 0 and 100, got nan"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"n": 0}, "n must be between 1 and 128, got 0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"min_tokens": 5, "max_tokens": 4}, r"min_tokens must be at most max_tokens \(4\), got 5"),
        (
            {"logit_bias": {3: 101.0}},
            "logit_bias must be a map of at most 1024 token ids to values between -100 and 100",
        ),
        ({"stop": ("",)}, "stop must be made of non-empty strings"),
        ({"logprobs": 21}, "logprobs must be between 0 and 20, got 21"),
    ],
)
def test_a_bad_value_is_refused_with_field_bound_and_value(values: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        SamplingParams(**values)


def test_temperature_zero_is_greedy() -> None:
    assert SamplingParams(temperature=0.0).greedy
    assert not SamplingParams().greedy
