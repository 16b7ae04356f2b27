"""The examples, at sizes that take a few seconds."""

import learn_features


def test_features_are_learnt_through_the_layer(tmp_path, monkeypatch, capsys):
    sizes = {"RUNS": 2, "SAMPLES": 40, "STEPS": 8, "TEST_EPISODES": 3, "PICTURE": tmp_path / "picture.png"}
    for name, value in sizes.items():
        monkeypatch.setattr(learn_features, name, value)
    learnt = []
    original = learn_features.learn
    monkeypatch.setattr(learn_features, "learn", lambda *given: learnt.append(original(*given)) or learnt[-1])
    learn_features.main()
    assert "| φ = (θ, ω, sin wθ) |" in capsys.readouterr().out
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    for one in learnt:
        assert (one.residual <= one.residuals[0]).all()
    assert (learnt[1].paths[-1] != learnt[1].paths[0]).all()
