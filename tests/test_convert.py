"""`crate_jax.convert`: a released file becomes a run, a run a released file, and mistakes."""

import hashlib
import json

import cv2
import jax
import numpy as np
import pytest
from conftest import ROOT, TINY, command, load_config
from conftest import run as run_command

from crate_jax import InputError, convert, evaluate, models, probe, report, sample, weights
from crate_jax.runs import cli
from crate_jax.runs import workdir as workdirs
from crate_jax.training import restoring, starting
from crate_jax.training.opening import open_run
from crate_jax.training.state import TrainState
from crate_jax.weights import files

FIXTURES = ROOT / "tests" / "fixtures"


def split(name):
    """What a fixture holds: the released arrays, and the rest."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        values = {name: file[name] for name in file.files}
    return {name.removeprefix("param/"): v for name, v in values.items() if name.startswith("param/")}, values


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("released")


def make(folder, name, suffix=".safetensors", **flags):
    """The run that the command makes of a fixture, and the fixture."""
    arrays, values = split(name)
    file = folder / f"{name}{suffix}"
    if not file.exists():
        files.write(file, arrays, {})
    workdir = folder / f"run-{name}"
    if not workdir.exists():
        given = [f"--{key}={value}" for key, value in {"heads": 4, **flags}.items()]
        convert.main(["convert", f"--input={file}", f"--output={workdir}", *given])
    return workdir, values


@pytest.fixture(scope="module")
def palette(folder):
    np.save(folder / "palette.npy", np.random.default_rng(0).uniform(-1, 1, (16, 3)).astype(np.float32))
    return folder / "palette.npy"


@pytest.fixture(scope="module")
def data(folder):
    rng = np.random.default_rng(0)
    np.savez(
        folder / "data.npz", images=rng.integers(0, 256, (60, 32, 32, 3), np.uint8), labels=np.arange(60) % 10
    )
    return f"--config.data.name=npz:{folder / 'data.npz'}"


def applied(workdir, inputs, **options):
    run, params, step = open_run(workdir)
    assert step == 0
    return jax.jit(lambda params, inputs: run.model.apply(params, inputs, **options)[0])(params, inputs)


@pytest.mark.parametrize(("name", "suffix"), [("crate_official", ".pth"), ("crate_alpha_official", ".npz")])
def test_golden_logits(folder, name, suffix):
    workdir, values = make(folder, name, suffix)
    logits = applied(workdir, values["image_nchw"].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(logits, values["logits"], rtol=1e-5, atol=1e-5)


def test_golden_reconstruction(folder):
    workdir, values = make(folder, "crate_mae_official")
    images = values["image_nchw"].transpose(0, 2, 3, 1)
    prediction = applied(workdir, images, noise=values["noise"])
    np.testing.assert_allclose(prediction, values["pred"], rtol=1e-5, atol=1e-5)


def test_golden_next_pixels(folder, palette):
    workdir, values = make(folder, "imagegpt_hf", palette=palette)
    logits = applied(workdir, values["tokens"])
    np.testing.assert_allclose(logits, values["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_run_is_one_like_any_other(folder, palette, data, capsys):
    workdir, _ = make(folder, "crate_official", ".pth")
    evaluate.main(["evaluate", f"--workdir={workdir}", data])
    assert json.loads((workdir / "report" / "evaluate.json").read_text())["step"] == 0
    report.main(["report", f"--workdir={workdir}"])
    assert (workdir / "report" / "index.html").is_file()
    with pytest.raises(InputError, match="does not say which data it was trained on; say what to look at"):
        probe.main(["probe", f"--workdir={workdir}"])
    pixels, _ = make(folder, "imagegpt_hf", palette=palette)
    sample.main(["sample", f"--workdir={pixels}", "--num=2"])
    assert cv2.imread(str(pixels / "report" / "samples.png")) is not None
    capsys.readouterr()


@pytest.mark.slow
def test_its_report_is_made_of_images_of_ones_own(folder, tmp_path):
    """No data and no metrics: every section that looks at images is made of a folder of any."""
    workdir, _ = make(folder, "crate_official", ".pth")
    rng = np.random.default_rng(1)
    for number, shape in enumerate([(40, 50, 3), (33, 32, 3), (64, 20)]):
        cv2.imwrite(str(tmp_path / f"{number}.png"), rng.integers(0, 256, shape, np.uint8))
    assert report.main(["report", f"--workdir={workdir}", f"--input={tmp_path}"]) is None
    made = json.loads((workdir / "report" / "report.json").read_text())
    shown = {section["name"]: section for section in made["sections"]}
    assert shown.keys() == {"layerwise", "attention", "segmentation", "subspaces", "atoms"}
    for name, section in shown.items():
        assert section["tables"] and section["values"], name
    said = [
        shown["layerwise"]["text"],
        *(shown[name]["tables"][0]["title"] for name in ("attention", "segmentation")),
    ]
    assert all(f"3 images of {tmp_path}" in text for text in said)
    assert shown["layerwise"]["values"]["count"] == 3
    assert (made["run"]["step"], made["run"]["evaluation"]) == (0, {})


def test_where_it_comes_from(folder):
    workdir, _ = make(folder, "crate_official", ".pth")
    file = folder / "crate_official.pth"
    found = json.loads((workdir / "provenance.json").read_text())
    assert found["file"] == str(file)
    assert found["sha256"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    assert (found["family"], found["heads"], found["types"]) == ("crate", 4, {"float32": 28})


def test_it_is_not_trained_on_by_mistake(folder):
    workdir, _ = make(folder, "crate_official", ".pth")
    with pytest.raises(InputError, match=f"give a new --workdir and --config.init_from={workdir}"):
        workdirs.check(workdir, load_config(TINY))


@pytest.mark.parametrize("suffix", files.WRITERS)
def test_a_run_becomes_a_file_again(folder, suffix, tmp_path):
    workdir, _ = make(folder, "crate_official", ".pth")
    output = tmp_path / f"out{suffix}"
    convert.main(["convert", f"--input={workdir}", f"--output={output}"])
    back = weights.export(weights.load(output, heads=4)[1], "crate")
    for name, value in split("crate_official")[0].items():
        np.testing.assert_array_equal(back[name], value)
    with pytest.raises(InputError, match="is there already"):
        convert.main(["convert", f"--input={workdir}", f"--output={output}"])


def test_a_file_becomes_another_file(folder, tmp_path):
    make(folder, "crate_alpha_official", ".npz")
    flags = ["--heads=4", "--family=crate_alpha_npz"]
    source, output = folder / "crate_alpha_official.npz", tmp_path / "jax.npz"
    convert.main(["convert", f"--input={source}", f"--output={output}", *flags])
    expected = weights.load(source, heads=4)[1]
    jax.tree.map(np.testing.assert_array_equal, weights.load(output)[1], expected)


def test_inspect(folder, capsys):
    make(folder, "crate_official", ".pth")
    convert.main(["convert", f"--inspect={folder / 'crate_official.pth'}"])
    out = capsys.readouterr().out
    for words in (
        "CRATE, PyTorch",
        "width 32, depth 2",
        "give --heads=N",
        "14,058 in 28 arrays",
        "28 × float32",
    ):
        assert words in out


def test_class_names(folder, tmp_path):
    file = folder / "crate_official.pth"
    make(folder, "crate_official", ".pth")
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij"))
    flags = [f"--input={file}", "--heads=4"]
    convert.main(["convert", *flags, f"--output={tmp_path / 'run'}", f"--classes={tmp_path / 'names.txt'}"])
    assert json.loads((tmp_path / "run" / "dataset.json").read_text())["class_names"] == list("abcdefghij")
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="--classes: found 2 different names; accepted: 10"):
        convert.main(["convert", *flags, f"--output={tmp_path / 'x'}", f"--classes={tmp_path / 'names.txt'}"])
    assert not (tmp_path / "x").exists()


def test_imagenets_classes(tmp_path):
    config = models.CRATEConfig(
        image_size=8, patch_size=4, num_classes=1000, dim=16, depth=1, heads=2, head_dim=8
    )
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), models.create(config).abstract_params
    )
    files.write(tmp_path / "w.npz", weights.export(params, "crate"), {})
    convert.main(["convert", f"--input={tmp_path / 'w.npz'}", "--heads=2", f"--output={tmp_path / 'run'}"])
    info = json.loads((tmp_path / "run" / "dataset.json").read_text())
    assert (info["name"], len(info["class_names"])) == ("tfds:imagenet2012", 1000)
    assert (info["class_names"][0], info["class_names"][-1]) == ("n01440764", "n15075141")


def changed(arrays, case):
    """Arrays in which something is wrong."""
    arrays = dict(arrays)
    qkv = "transformer.layers.1.0.fn.qkv.weight"
    if case == "missing layer":
        return {name: value for name, value in arrays.items() if ".layers.0." not in name}
    if case == "missing array":
        del arrays[qkv]
    elif case == "mixed":
        arrays |= split("crate_mae_official")[0]
    elif case == "transposed":
        arrays["transformer.layers.1.1.fn.weight"] = np.zeros((33, 32), np.float32)
        arrays[qkv] = arrays[qkv][:16]
    elif case == "not a number":
        arrays[qkv] = np.full_like(arrays[qkv], np.nan)
    return arrays


@pytest.mark.parametrize(
    ("case", "flags", "message"),
    [
        (
            "",
            ["--family=vit_timm"],
            "family: found vit_timm; accepted: crate, as the names in the checkpoint say",
        ),
        ("missing layer", [], r"no entry 'transformer.layers.0.0.fn.qkv.weight'"),
        ("missing array", [], r"does not fit: missing transformer.layers.1.0.fn.qkv.weight"),
        ("mixed", [], r"holds the names of two families, crate_mae and crate; accepted: one"),
        (
            "transposed",
            [],
            r"misshapen transformer.layers.\{layer\}.0.fn.qkv.weight \[\(16, 32\), \(32, 32\)\]",
        ),
        ("not a number", [], "holds values that are not finite"),
        ("", ["--heads=5"], "heads: found 5; accepted: a divisor of 32, the width of qkv"),
        ("", ["--palette=x.npy"], "--palette: found x.npy for crate; accepted: none, it sees pixels"),
        ("", ["--config.model.dim=64"], "does not fit: misshapen"),
        ("", ["--config.data.name=digitz"], "unknown dataset 'digitz'"),
        ("", ["--config.data.nam=x"], "config: unknown key data.nam"),
        ("", ["--part=ema"], "--part: found ema; accepted: none, there is one part only"),
    ],
)
def test_mistakes(case, flags, message, tmp_path):
    files.write(tmp_path / "w.npz", changed(split("crate_official")[0], case), {})
    arguments = [f"--input={tmp_path / 'w.npz'}", f"--output={tmp_path / 'run'}", "--heads=4", *flags]
    with pytest.raises(InputError, match=message) as error:
        convert.main(["convert", *arguments])
    assert str(error.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--input and --output are required, or --inspect"),
        (["--input={folder}/none.pth", "--output=x"], "no file"),
        (
            ["--input={file}", "--output={folder}/x.h5"],
            "--output: found .h5; accepted: a folder, or a file that ends in",
        ),
        (["--inspect={run}"], "is the folder of a run already; accepted: released weights"),
        (["--input=https://host/w.pth", "--output=x"], "accepted: a file that is here; download it first"),
        (["--input={run}", "--output={run}"], "is there already; accepted: a new folder"),
        (
            ["--input={run}", "--output={folder}/x.npz", "--family=vit_timm"],
            "released form of vit_timm does not fit",
        ),
        (["--input={file}", "--output={run}", "--heads=4"], "is there already; accepted: a new folder"),
        (
            ["--input={file}", "--output={folder}/y.npz", "--config.seed=1"],
            "only a new run has a configuration to change",
        ),
    ],
)
def test_mistakes_on_the_command_line(folder, flags, message):
    run, _ = make(folder, "crate_official", ".pth")
    places = {"folder": folder, "run": run, "file": folder / "crate_official.pth"}
    with pytest.raises(InputError, match=message):
        convert.main(["convert", *(flag.format(**places) for flag in flags)])


def test_tokens_that_are_colours_need_a_palette(tmp_path):
    config = models.IGPTConfig(vocab_size=300, num_positions=4, dim=16, depth=1, heads=2)
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), models.create(config).abstract_params
    )
    files.write(tmp_path / "w.npz", weights.export(params, "igpt_openai"), {})
    flags = [f"--input={tmp_path / 'w.npz'}", f"--output={tmp_path / 'run'}"]
    with pytest.raises(InputError, match="--palette is required: the model's 300 tokens are colours"):
        convert.main(["convert", *flags])
    clusters = np.random.default_rng(0).uniform(-1, 1, (300, 3))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"clusters": clusters.tolist()}))
    convert.main(["convert", *flags, f"--palette={tmp_path / 'preprocessor_config.json'}"])
    np.testing.assert_allclose(np.load(tmp_path / "run" / "palette.npy"), clusters, rtol=1e-6)


def test_a_vit_of_timm(tmp_path):
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    with torch.no_grad():
        network = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=7).eval()
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
        images = torch.randn(2, 3, 64, 64)
        expected = network(images).numpy()
    torch.save({"model": network.state_dict(), "epoch": 1}, tmp_path / "vit.pth")
    convert.main(["convert", f"--input={tmp_path / 'vit.pth'}", f"--output={tmp_path / 'run'}"])
    logits = applied(tmp_path / "run", images.numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    convert.main(["convert", f"--input={tmp_path / 'run'}", f"--output={tmp_path / 'back.pth'}"])
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert all(torch.equal(back[name], value) for name, value in network.state_dict().items())


def test_an_imagegpt_of_hugging_face(tmp_path, palette):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    sizes = {"vocab_size": 17, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}
    network = transformers.ImageGPTForCausalImageModeling(transformers.ImageGPTConfig(**sizes)).eval()
    tokens = np.random.default_rng(0).integers(0, 16, (2, 16))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
        ids = torch.tensor(np.concatenate([np.full((2, 1), 16), tokens[:, :-1]], axis=1))
        expected = network(input_ids=ids).logits.numpy()
    network.save_pretrained(tmp_path / "hf")
    convert.main(
        [
            "convert",
            f"--input={tmp_path / 'hf'}",
            "--heads=4",
            f"--palette={palette}",
            f"--output={tmp_path / 'r'}",
        ]
    )
    logits = applied(tmp_path / "r", tokens.astype(np.int32))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_fine_tuning_starts_from_it(folder, tmp_path, capsys):
    """Other classes and other images: the head starts anew, the positions are interpolated, and both are said."""
    workdir, _ = make(folder, "crate_official", ".pth")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 32, 32, 3), np.uint8), np.arange(40) % 3
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    sizes = {"dim": 32, "depth": 2, "heads": 4, "head_dim": 8, "patch_size": 8}
    flags = [f"--config.model.{name}={value}" for name, value in sizes.items()]
    flags += ["--config.data.image_size=48", f"--config.data.name=npz:{tmp_path / 'data.npz'}"]
    flags += ["--config.batch_size=8", "--config.total_steps=1", f"--config.init_from={workdir}"]
    config = f"--config={ROOT / 'configs' / 'finetune.py'}:cifar10_tiny"
    _, config, path, overrides = cli.parse_config_file(
        ["train", config, f"--workdir={tmp_path / 'run'}", *flags], cli.ConfigFlags
    )
    run = starting.start_run(config, path, overrides)
    fresh = run.model.init(jax.random.key(0))
    state = TrainState(step=0, params=fresh, opt_state=(), ema=None, sums={}, halted=False)
    tuned = restoring.warm_start(state, workdir, run).params
    said = " ".join(capsys.readouterr().out.split())
    assert "positions interpolated from 4×4 patches to 6×6" in said
    assert "head starts anew (10 classes there, 3 here)" in said
    released = open_run(workdir).params
    np.testing.assert_array_equal(tuned["head"]["kernel"], fresh["head"]["kernel"])
    np.testing.assert_array_equal(
        tuned["blocks"]["blocks"]["mssa"]["bases"], released["blocks"]["blocks"]["mssa"]["bases"]
    )
    assert tuned["position_embedding"].shape == (37, 32)


@pytest.mark.slow
def test_fine_tuning_of_a_builtin_run(tmp_path):
    """As the docstring of configs/finetune.py shows, on other images."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 17, (40, 8, 8, 1), np.uint8), np.arange(40) % 3
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    sizes = {"dim": 96, "depth": 6, "heads": 4, "head_dim": 24, "patch_size": 4}
    changes = {f"model.{name}": value for name, value in sizes.items()} | {"data.image_size": 8}
    changes |= {
        "data.mean": "(0.5,)",
        "data.std": "(0.5,)",
        "data.channels": 1,  # The recipe's are three, those of colour images.
        "data.randaugment": "()",
        "batch_size": 8,
        "total_steps": 1,
    }
    changes |= {"data.name": f"npz:{tmp_path / 'data.npz'}", "init_from": "builtin:crate-digits"}
    flags = ["--config=configs/finetune.py:cifar10_tiny", f"--workdir={tmp_path / 'run'}"]
    done = run_command(command("train", *flags, **changes))
    assert done.returncode == 0, done.stderr
    assert "head starts anew (10 classes there, 3 here)" in " ".join(done.stdout.split())
