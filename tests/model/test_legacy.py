"""The author's checkpoints: every form is read, wrong ones are refused, and nothing runs."""

from __future__ import annotations

import builtins
import os
import pickle
import pickletools
import struct
import zipfile

import pytest
import torch

from cctmn.errors import ModelError
from cctmn.model import unpickle
from cctmn.model.checkpoint import fresh
from cctmn.model.inference import Predictor
from cctmn.model.legacy import import_checkpoint
from tests.model import authors
from tests.model.conftest import EVERY, arch, classifier_arch, made_up, same


@pytest.mark.parametrize(("backbone", "truncation"), EVERY)
def test_files_of_every_backbone_are_imported(tmp_path, backbone, truncation):
    slices = made_up(1, size=(32, 32))
    for of in (arch(backbone, truncation, masks=True), classifier_arch(backbone, truncation)):
        net = fresh(of, seed=5)
        path = authors.write(tmp_path / "model.pth", authors.old_names(net))
        imported, card = import_checkpoint(path)
        assert card.arch == of
        assert card.trained
        assert card.provenance["epoch"] == 7
        assert card.provenance["source"] == "model.pth"
        assert same(Predictor(net).predict(slices)[0], Predictor(imported).predict(slices)[0])


@pytest.fixture(scope="module")
def net():
    return fresh(arch(), seed=5)


@pytest.fixture(scope="module")
def weights(net):
    return authors.old_names(net)


def equal(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_old_format_parallel_names_and_bare_state_dicts(tmp_path, net, weights):
    path = tmp_path / "model.pth"
    authors.write(path, weights, new_format=False, module="rpn_segmentation")
    assert equal(import_checkpoint(path)[0], net)
    authors.write(path, {"module." + name: tensor for name, tensor in weights.items()})
    assert equal(import_checkpoint(path)[0], net)
    torch.save(weights, path)
    imported, card = import_checkpoint(path)
    assert equal(imported, net)
    assert "anchors" in card.notes[0]


def test_missing_batch_counts_are_filled(tmp_path, net, weights):
    few = {n: t for n, t in weights.items() if not n.endswith("num_batches_tracked")}
    assert equal(import_checkpoint(authors.write(tmp_path / "m.pth", few))[0], net)


def test_lesion_classes_follow_from_the_shapes_or_the_caller(tmp_path):
    one = authors.old_names(fresh(arch(lesion_classes=("lesion",)), seed=5))
    path = authors.write(tmp_path / "m.pth", one)
    assert import_checkpoint(path)[1].arch.lesion_classes == ("lesion",)
    assert import_checkpoint(path, lesions="ggo")[1].arch.lesion_classes == ("ggo",)
    with pytest.raises(ModelError, match="lesion classes do not fit"):
        import_checkpoint(path, lesions="both")


def test_two_image_classes_are_those_of_ictcf(tmp_path):
    of = classifier_arch(image_classes=("control", "covid"))
    path = authors.write(tmp_path / "m.pth", authors.old_names(fresh(of, seed=5)))
    assert import_checkpoint(path)[1].arch == of


def refused(path, message):
    with pytest.raises(ModelError, match=message) as caught:
        import_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_tensor_must_find_its_place(tmp_path, weights):
    path = tmp_path / "m.pth"
    name = "rpn.head.cls_logits.bias"
    refused(authors.write(path, {n: t for n, t in weights.items() if n != name}), name)
    refused(authors.write(path, weights | {"extra.weight": torch.ones(2)}), "extra.weight")
    refused(authors.write(path, weights | {name: torch.ones(7)}), name)
    refused(authors.write(path, weights | {name: "text"}), name)
    refused(authors.write(path, weights | {name: torch.full((30,), torch.nan)}), "not finite")


def test_other_anchors_and_backbones_are_refused(tmp_path, weights):
    path = tmp_path / "m.pth"
    refused(authors.write(path, weights, sizes=(2, 4, 8, 16, 64)), "anchor sizes")
    deeper = {n: t for n, t in weights.items() if ".layer2.1." not in n}
    refused(authors.write(path, deeper), "residual blocks")


@pytest.mark.parametrize("new_format", [True, False])
def test_damaged_files_are_refused(tmp_path, weights, new_format):
    path = authors.write(tmp_path / "m.pth", weights, new_format=new_format)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "damaged")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "m.pth"
    refused(path, "cannot be read")
    refused(tmp_path, "cannot be read")
    for content in (b"", b"GIF89a", b"\x80", pickle.dumps({"a": 1}), b"\x00" * 999):
        path.write_bytes(content)
        refused(path, "not a torch.save checkpoint")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")
    refused(path, "data.pkl")
    torch.save([1, 2], path)
    refused(path, "no dict")
    torch.save({"model_weights": {}}, path)
    refused(path, "empty")
    torch.save({"model_weights": {"a": torch.ones(2)}}, path)
    refused(path, "residual blocks")


class Runs:
    """Pickles to a call of `function`, and afterwards to a state for its result."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def nested(bad, weights):
    yield bad
    yield {"model_weights": weights, "anchor_generator": bad}
    yield {"model_weights": bad}
    yield {"model_weights": weights, "optimizer_state": [{"deep": (bad,)}]}
    yield {"model_weights": weights, "anchor_generator": Runs(dict, state={"sizes": bad})}


@pytest.mark.parametrize("new_format", [True, False])
def test_no_pickle_ever_runs(tmp_path, weights, monkeypatch, new_format):
    mark = tmp_path / "ran"
    text = f"open({str(mark)!r}, 'w').close()"
    bad = [
        Runs(os.system, f"touch {mark}"),
        Runs(eval, text),
        Runs(exec, text),
        Runs(getattr, Runs, "reduced"),
        Runs(mark.touch),
        Runs(torch.load, str(mark)),
        Runs(builtins.map, print, ["x"]),
        Runs(type, "Made", (dict,), {"__setstate__": eval}, state=text),
    ]
    path = tmp_path / "m.pth"
    few = {"a": weights["rpn.head.cls_logits.bias"]}
    for one in bad:
        for content in nested(one, few):
            torch.save(content, path, _use_new_zipfile_serialization=new_format)
            with pytest.raises(ModelError):
                import_checkpoint(path)
            assert not mark.exists()


def in_zip(path, stream):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", stream)
    return path


@pytest.mark.parametrize(
    "stream",
    [
        b"cos\nsystem\n(S'touch RAN'\ntR.",  # GLOBAL, REDUCE
        b"(S'touch RAN'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch RAN'\no.",  # OBJ
        b"\x80\x02cos\nsystem\nX\x09\x00\x00\x00touch RAN\x85\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch RAN\x85R.",  # STACK_GLOBAL
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x0dopen('RAN','w')\x85R.",
        b"\x80\x02ccopyreg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtR.",
        # BUILD on what the reader hands out, then a call of it
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x08\x00\x00\x00__call__cos\nsystem\ns\x86b.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\ncos\nsystem\n\x85R(S'touch RAN'\ntR.",
    ],
)
def test_no_opcode_ever_runs(tmp_path, monkeypatch, stream):
    monkeypatch.chdir(tmp_path)
    path = in_zip(tmp_path / "m.pth", stream)
    refused(path, "m.pth")
    path.write_bytes(stream)
    refused(path, "m.pth")
    assert not (tmp_path / "RAN").exists()


def test_no_name_is_resolved():
    for name in ("os.system", "builtins.eval", "models.mask_net.rpn.AnchorGenerator", "a.b.c"):
        module, _, attribute = name.rpartition(".")
        stream = pickletools.optimize(f"c{module}\n{attribute}\n.".encode())
        assert unpickle._unpickle(stream, start=0)[0] is unpickle.Record


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "damaged"),  # a memo of 4 billion entries
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".", "damaged"),  # an exabyte of text
        (b"\x80\x02" + b"]" * 3, "damaged"),
    ],
)
def test_pickles_that_exhaust_memory_are_refused(tmp_path, stream, message):
    refused(in_zip(tmp_path / "m.pth", stream), message)


LAUGHS = b"\x80\x02K\x01q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60))


@pytest.mark.parametrize(
    "stream",
    [
        LAUGHS + b"}h\x3cK\x02s.",  # a key of 2 ** 60 items, which would be hashed
        LAUGHS + b"h\x3c.",
        b"\x80\x02K\x01" + b"\x85" * 200_000 + b".",  # a tuple in a tuple ...
        b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    ],
    ids=["laughs as a key", "laughs", "deep tuples", "deep lists"],
)
def test_pickles_that_expand_without_end_are_refused(tmp_path, stream):
    refused(in_zip(tmp_path / "m.pth", stream), "damaged")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_damaged_compressed_entries_are_refused(tmp_path, method):
    path = tmp_path / "m.pth"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("m/data.pkl", pickle.dumps({"a": list(range(500))}))
    data = bytearray(path.read_bytes())
    data[60:90] = b"\xff" * 30
    path.write_bytes(data)
    refused(path, "m.pth")


def test_zip_bombs_are_refused(tmp_path):
    path = tmp_path / "m.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"N." + b"\x00" * 10_000_000)
    refused(path, "larger than the file")


def test_a_tensor_larger_than_its_data_is_refused():
    saved = unpickle.SavedFile(None, {"0": bytes(8)})
    storage = unpickle.StorageRef("0", torch.float32)
    for shape, stride, offset in [((3,), (1,), 0), ((2,), (1,), 1), ((1 << 40,), (0,), 0)]:
        with pytest.raises(ModelError, match="exceeds"):
            saved.tensor(unpickle.TensorRef(storage, offset, shape, stride))
    assert saved.tensor(unpickle.TensorRef(storage, 1, (1,), (1,))).tolist() == [0]
