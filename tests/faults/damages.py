"""What can be wrong with a session file: name → what is done to a whole one. The result is text, or plain data to be written as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Content = dict[str, Any]


def _prompt(**changes: Any) -> Callable[[Content], Content]:
    """The second prompt, a branch of the first, with other fields."""

    def damage(content: Content) -> Content:
        content["state"]["prompts"][1].update(changes)
        return content

    return damage


def _state(**changes: Any) -> Callable[[Content], Content]:
    def damage(content: Content) -> Content:
        content["state"].update(changes)
        return content

    return damage


def _decoding(**changes: Any) -> Callable[[Content], Content]:
    def damage(content: Content) -> Content:
        content["sampling"]["decoding"].update(changes)
        return content

    return damage


def _sampling(**changes: Any) -> Callable[[Content], Content]:
    def damage(content: Content) -> Content:
        content["sampling"].update(changes)
        return content

    return damage


def _choice(**changes: Any) -> Callable[[Content], Content]:
    def damage(content: Content) -> Content:
        content["state"]["prompts"][1]["choices"][0].update(changes)
        return content

    return damage


def _intervention(**changes: Any) -> Callable[[Content], Content]:
    def damage(content: Content) -> Content:
        content["state"]["interventions"][0].update(changes)
        return content

    return damage


def _without(*path: str) -> Callable[[Content], Content]:
    def damage(content: Content) -> Content:
        part = content
        for name in path[:-1]:
            part = part[name]
        del part[path[-1]]
        return content

    return damage


def _nested_interventions(content: Content) -> str:
    """A patch from a run under a patch from a run under …, 600 times: deeper than ``json`` writes."""
    around = {
        "kind": "Patch",
        "name": "blocks.0.hook_resid_pre",
        "reference": {"kind": "Reference", "prompt": "the cat", "model": "", "interventions": ["INNER"]},
        "positions": {"kind": "Positions", "chosen": None, "start": 0},
        "heads": None,
    }
    before, after = json.dumps(around).split('"INNER"')
    inner = before * 600 + json.dumps(content["state"]["interventions"][0]) + after * 600
    return json.dumps(_state(interventions=["INNER"])(content)).replace('"INNER"', inner)


def _circle(content: Content) -> Content:
    first, second = content["state"]["prompts"]
    first["parent"], second["parent"] = second["key"], first["key"]
    return content


def _many_prompts(content: Content) -> Content:
    content["state"]["prompts"] = [{**content["state"]["prompts"][0], "key": key, "parent": None} for key in range(1001)]
    return content


DAMAGES: dict[str, Callable[[Content], Any]] = {
    # the file
    "empty": lambda content: "",
    "not JSON": lambda content: "{",
    "a list": lambda content: [content],
    "a number": lambda content: 3,
    "null": lambda content: None,
    "deep lists": lambda content: "[" * 100_000,
    "deep tables in a key": lambda content: json.dumps(content)[:-1] + ', "deeper": ' + '{"a":' * 5_000 + "1" + "}" * 5_000 + "}",
    "a number of 5,001 digits": lambda content: json.dumps(content).replace('"current": 1', '"current": ' + "9" * 5_001),
    "half of a character": lambda content: json.dumps(content).encode().replace(b"regex", b"\xff\xfe"),
    "another format": lambda content: {**content, "format": "else"},
    "another version": lambda content: {**content, "version": 2},
    "version as text": lambda content: {**content, "version": "1"},
    "no version": _without("version"),
    "no model": _without("model"),
    "a key of its own": lambda content: {**content, "else": 1},
    # its state
    "no state": _without("state"),
    "no prompts": _state(prompts=[]),
    "prompts null": _state(prompts=None),
    "1,001 prompts": _many_prompts,
    "current beyond": _state(current=7),
    "current negative": _state(current=-1),
    "current text": _state(current="1"),
    "current true": _state(current=True),
    "cursor 1e9": _state(cursor=1_000_000_000),
    "cursor -7": _state(cursor=-7),
    "cursor a fraction": _state(cursor=1.5),
    "no cursor": _without("state", "cursor"),
    # its prompts
    "a prompt that is no table": lambda content: (content["state"]["prompts"].append(3), content)[1],
    "own parent": _prompt(parent=1),
    "a circle of parents": _circle,
    "parent a list": _prompt(parent=[0]),
    "parent text": _prompt(parent="0"),
    "same key twice": _prompt(key=0, parent=None),
    "key negative": _prompt(key=-1, parent=None),
    "forked_at text": _prompt(forked_at="2"),
    "forked_at beyond the context": _prompt(forked_at=100_000),
    "n_given null": _prompt(n_given=None),
    "n_given text": _prompt(n_given="2"),
    "n_given beyond": _prompt(n_given=1000),
    "n_given negative": _prompt(n_given=-1),
    "ids null": _prompt(ids=None),
    "ids text": _prompt(ids="1,2,3"),
    "ids of text": _prompt(ids=["1", "2"]),
    "ids of fractions": _prompt(ids=[1.0, 2.0]),
    "ids of lists": _prompt(ids=[[1]]),
    "an id of NaN": _prompt(ids=[float("nan")]),
    "a negative id": _prompt(ids=[1, -1, 2, 3, 4, 5, 6, 7]),
    "an id outside the vocabulary": _prompt(ids=[1, 10**6, 2, 3, 4, 5, 6, 7]),
    "an id of 40 digits": _prompt(ids=[10**40]),
    "ids beyond the context": _prompt(ids=[1] * 5_000),
    "origin beyond the context": _prompt(origin=[1] * 5_000),
    "no origin": lambda content: (content["state"]["prompts"][1].pop("origin"), content)[1],
    "a field of its own": _prompt(colour="red"),
    "choices null": _prompt(choices=None),
    "a choice beyond the prompt": _choice(position=500),
    "a choice of no known way": _choice(how="guessed"),
    "a choice's draw of 2": _choice(draw=2.0),
    "a choice's knobs null": _choice(params=None),
    # its sampling settings
    "sampling a number": lambda content: {**content, "sampling": 3},
    "temperature text": _decoding(temperature="hot"),
    "temperature NaN": _decoding(temperature=float("nan")),
    "top_k of 400 digits": _decoding(top_k=10**400),
    "an unknown knob": _decoding(topp=1),
    "half of a surrogate pair in a stop text": _decoding(stop_sequences=["\ud800"]),
    "an empty stop text": _decoding(stop_sequences=[""]),
    "stop texts of a megabyte": _decoding(stop_sequences=["x" * 2**20]),
    "model_on text": _sampling(model_on="no"),
    "a constraint of no known kind": _sampling(constraint={"kind": "poem", "text": "x"}),
    "a constraint that is no expression": _sampling(constraint={"kind": "regex", "text": "("}),
    "a schema 900 deep": _sampling(constraint={"kind": "json_schema", "text": '{"items":' * 900 + "{}" + "}" * 900}),
    "a constraint of a megabyte": _sampling(constraint={"kind": "regex", "text": "x" * 2**20}),
    # its interventions
    "interventions null": _state(interventions=None),
    "an intervention of no known kind": _intervention(kind="Ablatoin"),
    "an intervention without kind": lambda content: (content["state"]["interventions"][0].pop("kind"), content)[1],
    "names a number": _intervention(names=5),
    "a hook that is not there": _intervention(names=["blocks.99.hook_mlp_out"]),
    "a head that is not there": _intervention(names=["blocks.0.attn.hook_z"], heads=[99]),
    "heads out of order": _intervention(names=["blocks.0.attn.hook_z"], heads=[1, 0]),
    "an ablation of no known method": _intervention(method="maybe"),
    "a mean of nothing": _intervention(method="mean"),
    "a negative position": _intervention(positions={"kind": "Positions", "chosen": [-1], "start": 0}),
    "interventions nested 600 deep": _nested_interventions,
    "a factor of 400 digits": _state(interventions=[{"kind": "Scale", "name": "blocks.0.hook_mlp_out", "factor": 10**400}]),
    "features of an SAE that is not given": _state(
        interventions=[
            {
                "kind": "FeatureEdit",
                "dictionary": {"kind": "Dictionary", "hook_in": "x", "hook_out": "x", "model": "x", "d_sae": 4, "fingerprint": "x"},
                "features": [1],
                "mode": "clamp",
                "value": 1.0,
                "positions": {"kind": "Positions", "chosen": None, "start": 0},
            }
        ]
    ),
}


def _page(**changes: Any) -> Callable[[Content], Content]:
    def damage(content: Content) -> Content:
        content["page"].update(changes)
        return content

    return damage


def _shown(**changes: Any) -> Callable[[Content], Content]:
    def damage(content: Content) -> Content:
        content["page"]["state"].update(changes)
        return content

    return damage


#: What can be wrong with what was on screen, which the session alone is read without.
PAGE_DAMAGES: dict[str, Callable[[Content], Any]] = {
    "the page a list": lambda content: {**content, "page": []},
    "an unknown view": _shown(view="nothing"),
    "a view that is a number": _shown(view=3),
    "an unknown theme": _shown(theme="pink"),
    "a layer as text": _shown(layer="3"),
    "a key of its own on the page": _shown(colour="red"),
    "an unknown panel open": _page(open=["lens", "nothing"]),
    "open a number": _page(open=3),
    "settings of an unknown panel": _page(settings={"nothing": {}}),
    "an unknown control": _page(settings={"attention": {"nothing": 1}}),
    "a control with a list": _page(settings={"attention": {"show": [1]}}),
    "half of a surrogate pair in a control": _page(settings={"interventions": {"towards": "\ud800"}}),
    "SAEs a number": _page(saes=3),
    "an SAE with an unknown key": _page(saes=[{"release": "storyworld", "sae": "resid_2"}]),
    "201 SAEs": _page(saes=[{"release": "a", "sae_id": "b"}] * 201),
    "deep lists on the page": lambda content: json.dumps({**content, "page": 0}).replace('"page": 0', '"page": ' + "[" * 5_000 + "]" * 5_000),
}


def damaged(content: Content, damage: Callable[[Content], Any]) -> bytes:
    """The file that a damage makes of a whole one."""
    found = damage(json.loads(json.dumps(content)))
    if isinstance(found, bytes):
        return found
    return (found if isinstance(found, str) else json.dumps(found)).encode()
