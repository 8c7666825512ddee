"""The pages: their numbers are the network's, what names hold is text, and a browser can use all of it."""

import base64
import json
import os
import re
import zlib

import numpy as np
import pytest

from mbnp import cli, datasets, layers, models, pages, weights
from mbnp.datasets import shapes10
from mbnp.network import Network
from mbnp.pages import explain, network
from tests.browser import DESKTOP, PHONE, opened, started

KINDS = ["mobilenet-v1-small", "resnet20", "mobilenet-v1", "mobilenet-v3-small-cifar"]
EMPTY = {"subtitle": "", "data": {"nodes": [], "measures": [], "images": []}, "blob": "", "roofline": None}
KINDS += ["mobilenet-v2-cifar", "xception-cifar"] * bool(os.environ.get("MBNP_NIGHTLY"))
SCALE = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def made(name):
    """Return a network whose statistics are those of images, as if it had been trained, and two images."""
    options = {"width_mult": 0.25} if name == "mobilenet-v1" else {}
    net = models.create(name, num_classes=10, **options)
    net.preprocessing, net.classes = SCALE, [f"kind {k}" for k in range(10)]
    images = shapes10.make(train=10, test=10).test.images[:2]
    images = images.repeat(net.resolution // 32, axis=1).repeat(net.resolution // 32, axis=2)
    net.forward(datasets.normalise(images, **SCALE), train=True)
    for _ in range(30):
        net.forward(datasets.normalise(images, **SCALE), train=True)
    return net, images


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The page of each kind of network, made once: its path, the network, the images."""
    made_pages = {}

    def get(name):
        if name not in made_pages:
            net, images = made(name)
            path = tmp_path_factory.mktemp("pages") / f"{name}.html"
            pages.write(path, explain.page(net, images, ["first.png", "second.png"]))
            made_pages[name] = path, net, images
        return made_pages[name]

    return get


def contents(page):
    """Return the data of a page and a function that reads an array of it."""
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    blob = zlib.decompress(base64.b64decode(re.search(r'<script id="blob".*?>(.*?)</script>', page, re.DOTALL)[1]))

    def array(ref):
        dtype, at, shape = ref
        return np.frombuffer(blob, f"<{dtype}", int(np.prod(shape)), at).reshape(shape)

    return data, array


@pytest.mark.parametrize("name", KINDS)
def test_the_numbers_of_a_page_are_the_networks(name, written):
    path, net, images = written(name)
    data, array = contents(path.read_text())
    x = datasets.normalise(images, **SCALE)
    activations = {"image": x} | net.activations(x)
    layers = dict(net.leaves())
    for node in data["nodes"]:
        true = activations[node["name"]][..., node["channels"]]
        true = true.transpose(0, 3, 1, 2) if true.ndim == 4 else true[..., None, None]
        if "maps" not in node:  # the page computes it from the map before, whose values the next lines check
            assert node["kind"] in ("relu", "dropout")
            continue
        held = array(node["maps"]["scale"])[..., None, None] * array(node["maps"]["values"]).astype(np.float32)
        largest = np.abs(true).max(axis=(2, 3), keepdims=True)
        assert np.all(np.abs(held - true) <= 5e-4 * np.abs(true) + 1e-8 * largest), node["name"]
        if "weight" in node:
            weight = layers[node["name"]].weight.value
            if node["kind"] != "depthwise":
                weight = weight[..., data["nodes"][node["inputs"][0]]["channels"], :]
            np.testing.assert_array_equal(array(node["weight"]), weight[..., node["channels"]])
    assert data["nodes"][0]["shape"] == list(x.shape[1:])
    assert [node["name"] for node in data["nodes"][1:]] == [
        n for n in net.activations(x[:1]) if n in layers or n in {node["name"] for node in data["nodes"]}
    ]


def test_the_channels_of_a_page_are_those_that_count():
    net, images = made("mobilenet-v1-small")
    data, _ = contents(explain.page(net, images, ["a", "b"], channels=8))
    nodes = {node["name"]: node for node in data["nodes"]}
    before, after = nodes["conv2_5.2"], nodes["conv2_5.3"]
    strength = np.abs(net.activations(datasets.normalise(images, **SCALE))["conv2_5.2"]).mean(axis=(0, 1, 2))
    worth = np.abs(net["conv2_5"]["3"].weight.value[:, after["channels"]]).sum(axis=1) * strength
    assert before["channels"] == sorted(np.argsort(-worth)[:8].tolist())
    assert before["count"] == 128
    assert "at most 8 of those" in explain.page(net, images, ["a", "b"], channels=8)


def test_a_page_keeps_its_size(written):
    article, v1 = written("mobilenet-v1-small")[0], written("mobilenet-v1")[0]
    assert article.stat().st_size / 2 < 5e6
    assert v1.stat().st_size / 2 < 15e6


def test_names_are_text_and_never_html():
    net, images = made("mobilenet-v1-small")
    hostile = "<script>alert(1)</script>&'\""
    net.classes = [hostile, *net.classes[1:]]
    page = explain.page(net, images[:1], [hostile], title=hostile)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert hostile in contents(page)[0]["classes"]


def test_bad_input_is_refused():
    net, images = made("mobilenet-v1-small")
    with pytest.raises(ValueError, match="a name for each image, got 2 images and 1 names"):
        explain.page(net, images, ["one"])
    net.preprocessing = None
    with pytest.raises(ValueError, match="does not say how its images were normalised"):
        explain.page(net, images, ["one", "two"])


def test_numbers_that_are_none_make_a_page(written):
    _, net, images = written("mobilenet-v1-small")
    net = models.mobilenet_v1_small()
    net.preprocessing = SCALE
    net["conv2_1"]["0"].weight.value[:] = np.nan
    data, _ = contents(explain.page(net, images, ["a", "b"]))
    assert data["nodes"][-1]["statistics"]["mean"] is None


def test_commands_write_pages(tmp_path, capsys):
    net, _ = made("mobilenet-v1-small")
    weights.save(net, tmp_path / "net.safetensors")
    assert cli.main(["data", "samples", str(tmp_path / "some"), "--count", "2", "--data", "shapes10"]) == 0
    where = ["--checkpoint", str(tmp_path / "net.safetensors"), "--out", str(tmp_path / "page.html")]
    assert cli.main(["explain", str(tmp_path / "some"), *where]) == 0
    assert len(contents((tmp_path / "page.html").read_text())[0]["images"]) == 2
    assert cli.main(["explain", str(tmp_path / "some"), str(tmp_path / "none.png"), *where]) == 1
    assert "none.png" in capsys.readouterr().err
    (tmp_path / "page.html").unlink()
    assert cli.main(["explain", str(tmp_path / "none.png"), *where]) == 2
    assert not (tmp_path / "page.html").exists()
    assert cli.main(["explain", str(tmp_path / "some"), *where[:3], str(tmp_path / "no" / "page.html")]) == 2
    assert "make it first" in capsys.readouterr().err
    assert cli.main(["summary", "mobilenet-v2", "--html", str(tmp_path / "v2.html")]) == 0
    page = (tmp_path / "v2.html").read_text()
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert sum(node["macs"] for node in data["nodes"]) == 300_774_272


def test_the_graph_joins_branches():
    net = models.create("mobilenet-v3-small-cifar", num_classes=10)
    nodes = network.graph(net, (32, 32, 3))
    joins = [node for node in nodes if node.kind in ("sum", "gate")]
    assert {node.kind for node in joins} == {"sum", "gate"}
    for node in joins:
        shapes = [nodes[i].shape for i in node.inputs]
        assert shapes == [node.shape, node.shape if node.kind == "sum" else (1, 1, node.shape[-1])]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["explain", "a.png", "--checkpoint", "net.safetensors", "--out", "net.safetensors"], "does not end in .html"),
        (["explain", "a.html", "--checkpoint", "net.safetensors", "--out", "a.html"], "a.html is read, too"),
        (["explain", "a.png", "--checkpoint", "net.safetensors", "--out", "folder.html"], "folder.html is no file"),
        (["summary", "a.html", "--html", "a.html"], "a.html is read, too"),
        (["summary", "resnet20", "--html", "none/a.html"], "no folder for none/a.html: make it first"),
        (["compare", "run", "--html", "run/config.json"], "run/config.json does not end in .html"),
        (["compare", "run", "--out", "run/metrics.csv"], "run/metrics.csv does not end in .png"),
        (["compare", "run", "--out", "run/curves.png"], "run/curves.png is read, too"),
    ],
)
def test_a_page_replaces_nothing_that_is_read(command, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder.html", "run"):
        (tmp_path / folder).mkdir()
    for name in ("a.png", "a.html", "net.safetensors", "run/config.json", "run/metrics.csv", "run/curves.png"):
        (tmp_path / name).write_text(name)
    assert cli.main(command) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert err.count("\n") == 1
    assert not out
    assert (tmp_path / "a.html").read_text() == "a.html"


def test_a_name_that_is_no_text_makes_a_page(tmp_path):
    pages.write(tmp_path / "page.html", pages.render("network.html", **EMPTY, title="run\udcfd"))
    assert "run\\udcfd" in (tmp_path / "page.html").read_text(encoding="utf-8")


def small(**layers_):
    """Return a network of these layers for images of 8x8, and an image."""
    net = Network({**layers_, "end": layers.GlobalAveragePool(), "fc": layers.Linear(4, 3)}, 8)
    net.preprocessing = SCALE
    return net, np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)


def test_a_layer_may_have_any_name():
    names = ("image", "cam", "saliency", "occlusion")
    depthwise = {name: layers.Depthwise(4) for name in names[:2]}
    net, images = small(conv=layers.Conv(3, 4), **depthwise, occlusion=layers.ReLU())
    data, array = contents(explain.page(net, images, ["a"]))
    x = datasets.normalise(images, **SCALE)
    held = data["nodes"][0]["maps"]
    first = array(held["scale"])[..., None, None] * array(held["values"]).astype(np.float32)
    np.testing.assert_allclose(first, x.transpose(0, 3, 1, 2), rtol=1e-3)
    assert data["look"]["gradcam"].keys() == {"conv", *names} - {"saliency"}
    assert data["look"]["maps"].keys() == {"cam", "saliency", "occlusion"}


# --- in a browser ---


@pytest.fixture(scope="module")
def browser():
    with started() as found:
        yield found


def check_formula(page, activations, n):
    """Compare the number that the page shows for a pixel with the network's."""
    text = page.inner_text("#formula")
    name, at = re.match(r"(.+?)\[([\d, ]+)\] = ", text).groups()
    true = float(activations[name][(n, *map(int, at.split(", ")))])
    shown = float(text.rsplit("= ", 1)[1].split(";")[0].replace("\N{MINUS SIGN}", "-"))
    largest = np.abs(activations[name][n]).max()
    assert abs(shown - true) <= 0.0056 * abs(true) + 1e-6 * largest, (text, true)
    for part in text.split(" = ")[1:-1]:  # what the page computes it from
        code = part.translate(str.maketrans("\N{MIDDLE DOT}\N{MULTIPLICATION SIGN}\N{MINUS SIGN}", "**-"))
        if re.fullmatch(r"(?:[\d\s.,()*/+e-]|min|max)+", code):
            rounding = 0.006 * eval(code.replace("e-", "e~").replace("-", "+").replace("e~", "e-"))
            assert abs(eval(code) - shown) <= rounding + 0.006 * abs(shown), text


@pytest.mark.parametrize("name", KINDS)
def test_every_layer_opens_and_shows_the_networks_numbers(name, written, browser):
    path, net, images = written(name)
    activations = {"image": datasets.normalise(images, **SCALE)} | net.activations(datasets.normalise(images, **SCALE))
    with opened(browser, path) as page:
        kinds = page.eval_on_selector_all("#flow .layer", "columns => columns.map(column => column.className)")
        chosen = range(len(kinds)) if os.environ.get("MBNP_NIGHTLY") else {k: i for i, k in enumerate(kinds)}.values()
        for i in chosen:  # of each kind the last, or all
            column = page.locator("#flow .layer").nth(i)
            column.locator(".map").last.click()
            check_formula(page, activations, 0)
            own = page.locator("#detail .stage > figure:first-child .big canvas")
            if not own.count():  # a single number has no pixels to point at
                continue
            own.hover(position={"x": 5, "y": 5})
            check_formula(page, activations, 0)
            own.focus()
            page.keyboard.press("ArrowDown")
            page.keyboard.press("ArrowRight")
            check_formula(page, activations, 0)
        page.locator("#images button").nth(1).click()
        check_formula(page, activations, 1)


def test_sums_of_a_layer_add_up(written, browser):
    path, *_ = written("mobilenet-v1-small")
    with opened(browser, path) as page:
        page.locator("#flow .layer.kind-pointwise").nth(3).locator(".map").first.click()
        numbers = [
            float(t.replace("\N{MINUS SIGN}", "-"))
            for t in page.locator(".terms .number:last-child, .terms .bar + .number").all_inner_texts()
        ]
        *parts, total = numbers
        assert sum(parts) == pytest.approx(total, abs=0.02 * sum(map(abs, parts)))


def test_switches_and_methods(written, browser):
    path, *_ = written("mobilenet-v1-small")
    with opened(browser, path) as page:
        tallest = {}
        for measure in ("macs", "params", "bytes", "ms"):
            page.select_option("#measure", measure)
            heights = page.eval_on_selector_all(
                "#flow .cost i", "bars => bars.map(bar => bar.getBoundingClientRect().height)"
            )
            assert max(heights) > 50
            tallest[measure] = heights.index(max(heights))
        assert tallest["macs"] != tallest["params"] or tallest["bytes"] != tallest["params"]
        pixels = "canvas => canvas.toDataURL()"
        seen = {}
        for method in ("cam", "gradcam", "saliency", "occlusion"):
            page.get_by_label("method").select_option(method)
            for rank in "01":
                page.get_by_label("class", exact=True).select_option(rank)
                seen[method, rank] = page.eval_on_selector("#heat", pixels)
            page.locator("#look .big canvas").first.hover(position={"x": 100, "y": 100})
            assert re.search(r"pixel \d+, \d+: .*there: .*\d", page.inner_text("#reading"))
        assert len(set(seen.values())) == 6
        assert all(seen["cam", rank] == seen["gradcam", rank] for rank in "01")  # before the average they are the same
        page.get_by_label("method").select_option("cam")
        assert "2 \N{MULTIPLICATION SIGN} 2 cells" in page.inner_text("#look")
        page.get_by_label("method").select_option("gradcam")
        page.get_by_label("layer", exact=True).select_option("conv1.2")
        assert page.get_attribute("#heat", "data-rows") == "32"


def test_the_kernel_slides_and_layers_follow_each_other(written, browser):
    path, *_ = written("mobilenet-v1-small")
    with opened(browser, path) as page:
        before = page.inner_text("#formula")
        page.get_by_text("slide the kernel").click()
        page.wait_for_function("text => document.getElementById('formula').textContent !== text", arg=before)
        page.get_by_text("stop").click()
        first = page.inner_text("#detail h2")
        page.get_by_text("next layer").focus()
        page.keyboard.press("Enter")
        assert page.inner_text("#detail h2") != first
        assert page.evaluate("document.activeElement.textContent").startswith("next layer")
        page.get_by_text("layer before").click()
        assert page.inner_text("#detail h2") == first


def place(page):
    """Return row, column and channel of the number that the page shows."""
    return [int(k) for k in re.search(r"\[([\d, ]+)\]", page.inner_text("#formula"))[1].split(", ")]


def test_a_click_holds_the_pixel_and_layers_keep_it(written, browser):
    path, net, _ = written("mobilenet-v1-small")
    with opened(browser, path) as page:
        page.locator("#flow .layer.kind-batchnorm .map").nth(4).click()
        own = page.locator("#detail .stage > figure:first-child .big canvas")
        own.click(position={"x": 60, "y": 100})
        held = place(page)
        own.hover(position={"x": 200, "y": 200})
        assert place(page) == held
        page.get_by_text("next layer").click()  # ReLU: the same channel
        assert place(page) == held
        page.get_by_text("next layer").click()  # pointwise: the map that uses this one most
        weight = np.abs(net["conv2_1"]["3"].weight.value[held[2]])
        assert place(page) == [*held[:2], weight.argmax()]


def test_arrow_keys_go_from_map_to_map(written, browser):
    path, *_ = written("mobilenet-v1-small")
    with opened(browser, path) as page:
        assert page.locator("#flow [tabindex='0']").count() == 1
        page.locator("#flow [tabindex='0']").focus()
        seen = [page.inner_text("#detail h2")]
        page.keyboard.press("ArrowRight")
        seen.append(page.inner_text("#detail h2"))
        channel = place(page)[2]
        page.keyboard.press("ArrowDown")
        assert place(page)[2] != channel
        page.locator("#detail .strip [tabindex='0']").focus()
        channel = place(page)[2]
        page.keyboard.press("ArrowRight")
        assert place(page)[2] == channel + 1
        assert seen[0] != seen[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_a_finger(scheme, written, browser):
    path, *_ = written("mobilenet-v3-small-cifar")
    with opened(browser, path, PHONE, has_touch=True, is_mobile=True, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        page.locator("#flow .layer.kind-gate .map").first.tap()
        before = page.inner_text("#formula")
        page.locator("#detail .big canvas").first.tap(position={"x": 3, "y": 3})
        assert page.inner_text("#formula") != before
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
        assert dark == (scheme == "dark")


def test_a_pool_that_leaves_out_its_padding(tmp_path, browser):
    pool = layers.AveragePool(2, 1, ((1, 0), (0, 1)), count_padding=False)
    net, images = small(conv=layers.Conv(3, 4), pool=pool)
    pages.write(tmp_path / "page.html", explain.page(net, images, ["a"]))
    with opened(browser, tmp_path / "page.html") as page:
        page.locator("#flow .layer.kind-average-pool .map").first.click()
        page.locator("#detail .stage > figure:first-child .big canvas").hover(position={"x": 2, "y": 2})
        text = page.inner_text("#formula").replace("\N{MINUS SIGN}", "-")
        terms, count, total = re.search(r"= \((.*)\)/(\d) = (\S+)", text).groups()
        assert count == "2"
        assert eval(terms) / 2 == pytest.approx(float(total), abs=0.01)


def test_a_network_without_maps_has_no_grad_cam(tmp_path, browser):
    net, images = small(conv=layers.Conv(3, 4, kernel=8))
    pages.write(tmp_path / "page.html", explain.page(net, images, ["a"]))
    with opened(browser, tmp_path / "page.html") as page:
        assert page.get_by_label("method").locator("option").all_inner_texts() == [
            *("class activation map", "saliency", "occlusion")
        ]


def test_long_names_of_classes_fit(tmp_path, browser):
    net, images = made("mobilenet-v1-small")
    shark = "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"
    net.classes = [f"{shark} {k}" for k in range(10)]
    pages.write(tmp_path / "page.html", explain.page(net, images[:1], ["a"]))
    for viewport in (DESKTOP, PHONE):
        with opened(browser, tmp_path / "page.html", viewport) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
            assert page.locator("#classes .bar").first.bounding_box()["width"] > 30


def test_pages_without_images(tmp_path, browser):
    pages.write(tmp_path / "page.html", network.page(models.create("mobilenet-v2"), "mobilenet-v2"))
    with opened(browser, tmp_path / "page.html", DESKTOP) as page:
        assert page.locator("#flow .layer").count() > 100
        page.select_option("#measure", "params")
        assert "300,774,272 MACs" in page.inner_text("header")
