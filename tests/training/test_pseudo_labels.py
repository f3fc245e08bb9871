"""Classes from attributes and clusters, on made-up clips whose features are known."""

import json
from pathlib import Path

import pytest
import torch

from na_ssl_hf.data.dcase.clips import DcaseClip, list_dcase_clips
from na_ssl_hf.training.pseudo_labels import LabelMap, clip_key, cluster_embeddings, make_label_map


def write_clips(root: Path, machine: str, source: list[str], target: list[str], split: str = "train") -> None:
    folder = root / machine / split
    folder.mkdir(parents=True, exist_ok=True)
    for domain, attributes in (("source", source), ("target", target)):
        for index, attribute in enumerate(attributes):
            (folder / f"section_00_{domain}_{split}_normal_{index:04d}_{attribute}.wav").write_bytes(b"x" * 10)


@pytest.fixture
def root(tmp_path):
    write_clips(tmp_path, "fan", ["spd_1", "spd_2"] * 5, ["spd_3", "spd_3"])
    write_clips(tmp_path, "valve", ["noAttribute"] * 12, ["noAttribute"] * 2)
    for machine in ("fan", "valve"):
        write_clips(tmp_path, machine, ["noAttribute"] * 3, [], split="test")
    return tmp_path


class Embedder:
    """Features around one of three centres, by the clip's number; remembers what it was asked for."""

    def __init__(self):
        self.paths = []

    def __call__(self, paths):
        self.paths += paths
        numbers = torch.tensor([int(path.stem.split("_")[5]) for path in paths])
        centres = 5 * torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
        return centres[numbers % 3] + 0.01 * torch.randn(len(paths), 2, 4)


def test_attributes_first_then_clusters_of_source_clips_only(root):
    embedder, clips = Embedder(), list_dcase_clips(root, "train")
    label_map = make_label_map(clips, embedder, num_clusters=3)
    assert list(label_map.classes) == [
        "fan/section_00/spd_1",
        "fan/section_00/spd_2",
        "fan/section_00/spd_3",
        *(f"valve/section_00/source/cluster_{k:02d}" for k in range(3)),
        "valve/section_00/target",
    ]
    assert [len(members) for members in label_map.classes.values()] == [5, 5, 2, 4, 4, 4, 2]
    assert {path.parent for path in embedder.paths} == {root / "valve" / "train"}
    assert all("_source_train_" in path.name for path in embedder.paths)
    labels = label_map.labels(clips)
    names = list(label_map.classes)
    for clip, label in zip(clips, labels.tolist(), strict=True):
        assert clip_key(clip) in label_map.classes[names[label]]
    clusters = {int(clip.path.stem.split("_")[5]) % 3: set() for clip in clips}
    for clip, label in zip(clips, labels.tolist(), strict=True):
        if "cluster" in names[label]:
            clusters[clip.name.index % 3].add(label)
    assert all(len(each) == 1 for each in clusters.values())


def test_machines_of_one_attribute_table_need_no_features(root):
    clips = list_dcase_clips(root, "train", ["fan"])
    label_map = make_label_map(clips, embed=None, num_clusters=100)
    assert len(label_map.classes) == 3


def test_the_same_seed_gives_the_same_map(root):
    clips = list_dcase_clips(root, "train")
    maps = [make_label_map(clips, lambda p: torch.arange(float(len(p)))[:, None, None], 4, seed=1) for _ in range(2)]
    assert maps[0] == maps[1]


def test_silhouette_finds_the_number_of_clusters():
    torch.manual_seed(0)
    centres = 10 * torch.randn(4, 3, 5)
    embeddings = centres[torch.arange(40) % 4] + 0.1 * torch.randn(40, 3, 5)
    clusters = cluster_embeddings(embeddings, "silhouette")
    assert len(set(clusters)) == 4
    assert all(clusters[i] == clusters[i % 4] for i in range(40))


def test_more_dimensions_than_clips_change_no_cluster():
    torch.manual_seed(0)
    few = 3 * torch.randn(3, 1, 4)[torch.arange(30) % 3] + torch.randn(30, 1, 4)
    rotation = torch.linalg.qr(torch.randn(64, 4)).Q.T  # (4, 64)
    wide = few @ rotation
    partition = [
        {i for i, c in enumerate(labels) if c == k}
        for labels in (cluster_embeddings(few, 3), cluster_embeddings(wide, 3))
        for k in range(3)
    ]
    assert sorted(map(sorted, partition[:3])) == sorted(map(sorted, partition[3:]))


def test_is_saved_as_json_that_can_be_read_and_checked(root, tmp_path):
    clips = list_dcase_clips(root, "train")
    label_map = make_label_map(clips, Embedder(), num_clusters=3, settings={"frontend": "beats"})
    label_map.save(tmp_path / "out" / "label_map.json")
    content = json.loads((tmp_path / "out" / "label_map.json").read_text())
    assert content["classes"]["fan/section_00/spd_3"] == [
        f"fan/section_00_target_train_normal_{n:04d}_spd_3" for n in range(2)
    ]
    assert content["settings"] == {"num_clusters": 3, "seed": 0, "frontend": "beats"}
    again = LabelMap.load(tmp_path / "out" / "label_map.json")
    assert again == label_map
    assert torch.equal(again.labels(clips), label_map.labels(clips))


def test_a_moved_data_set_is_the_same(root, tmp_path):
    label_map = make_label_map(list_dcase_clips(root, "train"), Embedder(), num_clusters=3)
    (root / "moved").mkdir()
    for machine in ("fan", "valve"):
        (root / machine).rename(root / "moved" / machine)
    moved = list_dcase_clips(root / "moved", "train")
    assert label_map.labels(moved).shape == (26,)


def test_another_data_set_is_refused(root):
    clips = list_dcase_clips(root, "train")
    label_map = make_label_map(clips, Embedder(), num_clusters=3)
    with pytest.raises(ValueError, match=r"of this data set: it was made from 26 clips .* got 14"):
        label_map.labels([clip for clip in clips if clip.name.machine == "valve"])
    clips[-1].path.write_bytes(b"longer than before")
    with pytest.raises(ValueError, match="label map must be of this data set"):
        label_map.labels(clips)
    write_clips(root, "valve", [], ["noAttribute"] * 3)
    with pytest.raises(
        ValueError, match="1 are not in it, first valve/section_00_target_train_normal_0002_noAttribute"
    ):
        label_map.labels(list_dcase_clips(root, "train"))
    write_clips(root, "fan", [], ["spd_9"])
    with pytest.raises(ValueError, match=r"know the attributes of all clips, got 'spd_9' of .*spd_9.wav"):
        label_map.labels(list_dcase_clips(root, "train"))


def test_bad_input_is_refused_before_anything_is_embedded(root, tmp_path):
    clips = list_dcase_clips(root, "train")
    for wrong, settings, message in (
        (clips, {"num_clusters": 13}, "got 13 for 12 of valve/section_00/source"),
        (clips, {"num_clusters": 0}, "num_clusters must be a whole number of at least 1 or 'silhouette', got 0"),
        (list_dcase_clips(root, "test"), {}, "clips must all be of the training split, got .*_test_normal_"),
        ([clip for clip in clips if clip.attributes == "spd_3"], {}, "at least two classes, got one alone: fan"),
        ([], {}, "at least two classes, got one alone: no clips"),
    ):
        with pytest.raises(ValueError, match=message):
            make_label_map(wrong, None, **settings)
    with pytest.raises(ValueError, match="embeddings must be finite"):
        cluster_embeddings(torch.full((4, 1, 2), float("nan")), 2)
    with pytest.raises(FileNotFoundError):
        LabelMap.load(tmp_path / "none.json")
    for content in ("{}", "[]", '{"format_version": 9}', "x"):
        (tmp_path / "map.json").write_text(content)
        with pytest.raises(ValueError, match=r"map.json must be a label map of this package"):
            LabelMap.load(tmp_path / "map.json")


def test_clips_of_years_without_domains_count_as_source(root):
    folder = root / "pump" / "train"
    folder.mkdir(parents=True)
    for index in range(4):
        (folder / f"normal_id_02_{index:08d}.wav").write_bytes(b"x")
    clips = list_dcase_clips(root, "train", ["pump"])
    assert isinstance(clips[0], DcaseClip)
    label_map = make_label_map(clips, lambda p: torch.arange(float(len(p)))[:, None, None], 2)
    assert list(label_map.classes) == [f"pump/section_02/source/cluster_{k:02d}" for k in range(2)]
