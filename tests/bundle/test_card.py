"""The model card: front matter a Hub reader parses, and the facts of config.json."""

from __future__ import annotations

from bundle.making import small_bundle
from huggingface_hub import ModelCard

from memssl_core.bundle.card import card, card_with_map, published_card


def test_the_front_matter_is_what_the_hub_reads():
    config = small_bundle().config
    config["memssl"]["provenance"]["license"] = "apache-2.0"
    front = ModelCard(card(config)).data.to_dict()
    assert front["library_name"] == "timm" and front["pipeline_tag"] == "image-feature-extraction"
    assert {"memssl", "self-supervised-learning"} <= set(front["tags"]) and front["license"] == "apache-2.0"


def test_the_card_tells_the_facts():
    text = card(small_bundle().config, hours=1.5)
    assert "12 minutes" in card(small_bundle().config, hours=0.2)
    for fact in (
        "# small",
        "50 slots",
        "blocks of 10",
        "5 steps",
        "1.5 hours",
        "`drawn:7:20`",
        "| k-NN top-1 (%) | 61.5 |",
        "student 0.1",
    ):
        assert fact in text, fact
    assert "Attention is not an explanation" in text
    assert 'timm.create_model("local-dir:FOLDER", pretrained=True)' in text


def test_a_bare_model_has_no_empty_lines_in_its_table():
    config = small_bundle(with_memory=False).config
    config["memssl"].update(head=None, provenance={}, temperatures={})
    text = card(config)
    assert "Figures" not in text and "None" not in text and "license" not in text.split("---")[1]


def test_words_cannot_break_out_of_the_table():
    config = small_bundle().config
    config["memssl"]["provenance"].update(name="a\n# b", data="x | <script>")
    text = card(config)
    assert "\n# b" not in text and "<script>" not in text and "x \\| &lt;script>" in text


def test_a_map_takes_the_place_of_an_earlier_one():
    text = card(small_bundle().config)
    one, two = ({"method": "umap", "seed": seed, "space": "memory", "trustworthiness": 0.9 + seed} for seed in (0, 1))
    told = card_with_map(card_with_map(text, one), two)
    assert told == card_with_map(text, two) and "| trustworthiness@15 of the map | 1.9 |" in told
    begin, end = told.split("\n## Map\n")
    assert text == begin + "\n## Limits\n" + end.split("\n## Limits\n")[1]
    assert card_with_map(text, {"method": "pca"}) == text
    assert card_with_map("# my own words\n", one) == "# my own words\n"


def test_on_the_hub_the_card_loads_from_there():
    text = published_card(card(small_bundle().config), "someone/small")
    assert 'timm.create_model("hf-hub:someone/small", pretrained=True)  # embeddings' in text
    assert 'open_model("hub:someone/small")' in text
    assert "FOLDER" not in text and "OWNER/NAME" not in text
    assert published_card("# my own words\n", "someone/small") == "# my own words\n"


def test_a_model_that_was_not_trained_here_is_not_said_to_be():
    config = small_bundle().config
    config["memssl"].update(head=None, provenance={"repository": "timm/resnet18.a1_in1k", "license": "apache-2.0"})
    config["memssl"]["memory"] = {"slots": 50, "block_size": None, "space": "embedding"}
    text = card(config)
    assert "ICML" not in text and "self-supervised" not in text and "`timm/resnet18.a1_in1k`" in text
    assert "50 slots of embeddings (it has no projection head)" in text and "blocks" not in text
    assert ModelCard(text).data.to_dict()["tags"] == ["timm", "memssl"]
    config["memssl"]["provenance"]["family"] = "massl"
    assert "ICML" in card(config)
