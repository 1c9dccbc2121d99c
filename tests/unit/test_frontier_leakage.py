"""What a frontier takes from the suite's figures: the SSIM of the attack that the suite calls the strongest."""

from delta.frontier.leakage import leakage_of


def _figures(**more):
    return {
        "taps": [
            {"tap": "release", "attack": "decoder", "ssim": 0.60, "decoder": {"epochs": 30}},
            {"tap": "release", "attack": "cgan, adversarial alone", "ssim": 0.62, "cgan": {"epochs": 30}},
            {
                "tap": "release",
                "attack": "optimisation from the drawing",
                "ssim": 0.65,
                "search": {"steps": 300},
            },
            {"tap": "random-bits", "attack": "decoder", "ssim": 0.20},
            {"tap": "random-bits", "attack": "cgan with an L1 term", "ssim": 0.22},
        ],
        "floors": {"mean_image": {"ssim": 0.18}, "originals": {"class_accuracy": 90.0}},
        **more,
    }


def test_it_takes_the_strongest_as_the_suite_names_it():
    named = [
        {"tap": "release", "attack": "cgan, adversarial alone", "looks": 1, "ssim": 0.62, "victims": 500},
        {"tap": "random-bits", "attack": "decoder", "looks": 1, "ssim": 0.20, "victims": 500},
    ]
    found = leakage_of(_figures(strongest=named))
    assert found["ssim"] == 0.62
    assert found["ssim_floor"] == 0.22
    assert found["decoder"] == {"epochs": 30}


def test_figures_without_that_name_give_the_highest():
    assert leakage_of(_figures())["ssim"] == 0.65
    assert leakage_of({"taps": []})["ssim"] is None
