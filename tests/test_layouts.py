"""Which columns are read as the prompt: no question is lost, doubled or made up in silence."""

import json
import warnings

import datasets
import pandas as pd
import pytest

import toolkit as tk

PAIR = {"chosen": "It is Paris.", "rejected": "It is Lyon."}
ASKED = "What is the capital of France?"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


CHAT = {"chosen": [assistant("Paris.")], "rejected": [assistant("Lyon.")]}
WHOLE_CHAT = {name: [user(ASKED), *text] for name, text in CHAT.items()}


def silent(row):
    """Load one row and see that nothing was said about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (pair,) = tk.load_pairs([row])
    assert pair.notes == ()
    return pair


def refusal(row):
    with pytest.raises(tk.PairError) as caught:
        tk.load_pairs([row])
    assert tk.load_pairs([row], on_error="skip").skipped.reason.tolist() == [caught.value.reason]
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["instruction", "question", "query", "prompt_text", "user_prompt", "input", "Question"]
)
def test_one_column_with_a_well_known_name_is_the_prompt(name):
    pair = silent(PAIR | {name: ASKED, "source": "web"})
    assert (pair.prompt, pair.chosen) == (ASKED, PAIR["chosen"])
    assert pair.meta == {"source": "web"}


def test_every_source_reads_the_same_column(tmp_path):
    rows = [PAIR | {"instruction": ASKED}, PAIR | {"instruction": "And of Spain?"}]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    wanted = tk.load_pairs(rows)
    files = [tmp_path / f"a.{suffix}" for suffix in ("csv", "parquet", "jsonl")]
    for source in (*files, frame, datasets.Dataset.from_list(rows)):
        assert tk.load_pairs(source) == wanted
    assert [pair.prompt for pair in wanted] == [ASKED, "And of Spain?"]


@pytest.mark.parametrize(
    "empty", [{"instruction": ASKED, "input": ""}, {"system": None, "question": ASKED}]
)
def test_an_empty_part_is_no_part(empty):
    assert silent(PAIR | empty).prompt == ASKED


@pytest.mark.parametrize(
    ("columns", "fix"),
    [
        (
            {"system": "Be brief.", "question": ASKED},
            'df["prompt"] = df["system"] + "\\n\\n" + df["question"]',
        ),
        (
            {"instruction": "Answer.", "input": ASKED},
            'df["prompt"] = df["instruction"] + "\\n\\n" + df["input"]',
        ),
        ({"system": ASKED}, 'df.rename(columns={"system": "prompt"})'),
        ({"context": ASKED}, 'df.rename(columns={"context": "prompt"})'),
        ({"ask": ASKED}, 'df.rename(columns={"ask": "prompt"})'),
        ({"ask": ASKED}, 'df.drop(columns=["ask"])'),
        ({"Frage": "首都は"}, 'df.rename(columns={"Frage": "prompt"})'),
        ({"promt": ASKED}, 'df.rename(columns={"promt": "prompt"})'),
        ({"instruction": ""}, "instruction is empty, and there is no other prompt"),
        ({"instruction": None}, "instruction is empty, and there is no other prompt"),
        ({"messages": [user(ASKED)]}, "must all be text or all lists of messages"),
    ],
)
def test_a_prompt_that_is_not_certain_is_refused_with_the_line_to_type(columns, fix):
    said = refusal(PAIR | columns)
    assert fix in said
    assert "on_error" not in said or "empty" in said or "messages" in said  # skipping drops all


def test_typing_the_line_of_the_refusal_works():
    frame = pd.DataFrame([PAIR | {"system": "Be brief.", "question": ASKED, "ask": ASKED}])
    line = refusal(frame.to_dict("records")[0]).split("joined: ")[1]
    exec(line, {"df": frame})
    with pytest.warns(UserWarning, match="1 of 1 pairs: column 'system' is not part"):
        tk.load_pairs(frame.assign(prompt="x"))
    assert tk.load_pairs(frame)[0].prompt == f"Be brief.\n\n{ASKED}"
    frame = pd.DataFrame([PAIR | {"ask": ASKED}])
    line = refusal(frame.to_dict("records")[0])
    for part in ('df.rename(columns={"ask": "prompt"})', 'df.drop(columns=["ask"])'):
        assert part in line
        pairs = tk.load_pairs(eval(part, {"df": frame}))
        assert pairs[0].prompt == (ASKED if "rename" in part else "It is")[: len(pairs[0].prompt)]


def test_the_first_words_that_both_share_are_not_taken_for_the_question():
    """Without the column the shared words are the prompt, as in TRL; beside it they are not."""
    assert silent(PAIR).prompt == "It is"
    assert silent(PAIR | {"question": ASKED}).prompt == ASKED
    assert silent(PAIR | {"topic": "geography", "row_id": "a-1"}).prompt == "It is"


def test_a_question_that_both_responses_hold_is_not_read_twice():
    row = {name: f"{ASKED} {text}" for name, text in PAIR.items()}
    said = refusal(row | {"question": ASKED})
    assert 'df.drop(columns=["question"])' in said
    assert 'df.rename(columns={"question": "prompt"})' in said
    pair = silent(row | {"ask": ASKED})
    assert pair.prompt == f"{ASKED} It is" and pair.meta == {"ask": ASKED}


def test_a_prompt_that_both_responses_repeat_is_read_as_it_stands_and_said():
    row = {name: f"{ASKED} {text}" for name, text in PAIR.items()} | {"prompt": ASKED}
    with pytest.warns(UserWarning, match="2 of 3 pairs: both responses begin with the prompt"):
        pairs = tk.load_pairs([row, row, PAIR | {"prompt": ASKED}])
    assert pairs[0].chosen == row["chosen"]
    assert pairs[0].notes == ("both responses begin with the prompt, so that it is read twice",)
    audit = tk.audit_pairs(pairs, tk.load_model())
    assert audit.notes[0] == pairs[0].notes[0] and not audit.notes[2]


def test_rows_without_any_prompt_load_and_say_so():
    with pytest.warns(UserWarning, match=r"1 of 1 pairs: chosen and rejected share no beginning"):
        (pair,) = tk.load_pairs([{"chosen": "Paris it is", "rejected": "Lyon it is", "topic": "x"}])
    assert pair.prompt == "" and "the prompt is empty" in pair.notes[0]


def test_a_column_beside_an_explicit_prompt_is_named_where_it_says_prompt():
    row = PAIR | {"prompt": f"Q: {ASKED}\nA:", "question": ASKED, "title": "a title of words"}
    assert silent(row).meta["question"] == ASKED
    with pytest.warns(UserWarning, match="column 'system' is not part of the prompt"):
        pair = tk.load_pairs([row | {"system": "Be brief."}])[0]
    assert pair.meta["system"] == "Be brief."


def test_messages_beside_the_responses_are_the_prompt():
    pair = silent(CHAT | {"messages": [user(ASKED)]})
    assert (pair.prompt, pair.chosen) == ((user(ASKED),), (assistant("Paris."),))
    assert "messages" not in pair.meta


def test_ultrafeedback_rows_are_read_by_their_conversations():
    row = WHOLE_CHAT | {"prompt": ASKED, "prompt_id": "0" * 64}
    row |= {"messages": row["chosen"], "score_chosen": 8.5, "score_rejected": 7.0}
    pair = silent(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == (
        (user(ASKED),),
        (assistant("Paris."),),
        (assistant("Lyon."),),
    )
    without = {name: value for name, value in row.items() if name != "prompt"}
    assert silent(without).prompt == pair.prompt
    assert silent(without | {"question": ASKED, "source": "ultra chat"}).prompt == pair.prompt


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        (CHAT | {"prompt": ASKED}, 'df["prompt"] = [[{"role": "user", "content": text}] for text'),
        (CHAT | {"question": ASKED}, 'for text in df["question"]]'),
        (CHAT | {"messages": WHOLE_CHAT["chosen"]}, "give it as messages"),
        (WHOLE_CHAT | {"system": "Be brief."}, 'put it there, or leave it out: df.drop(columns=["'),
        (
            {
                "chosen": "\n\nHuman: hi\n\nAssistant: yo",
                "rejected": "\n\nHuman: hi\n\nAssistant: no",
                "question": ASKED,
            },
            "column 'question' is not in the prompt",
        ),
    ],
)
def test_conversations_beside_another_prompt_are_refused(row, fix):
    assert fix in refusal(row)


def test_transcripts_that_hold_the_question_are_read():
    turn = f"\n\nHuman: {ASKED}\n\nAssistant:"
    row = {"chosen": f"{turn} Paris.", "rejected": f"{turn} Lyon.", "question": ASKED}
    assert silent(row | {"ask": "some other words"}).prompt == turn


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        (
            {"prompt": ASKED, "preferred": "a", "dispreferred": "b"},
            'df.rename(columns={"preferred": "chosen", "dispreferred": "rejected"})',
        ),
        (
            {"prompt": ASKED, "accepted": "a", "rejected": "b"},
            'df.rename(columns={"accepted": "chosen"})',
        ),
        ({"prompt": ASKED, "completion": "a", "label": True}, "unpaired rows (KTO's form)"),
        ({"prompt": ASKED, "answers": [{"answer": "a", "rank": 1}]}, "hold several responses"),
        ({"prompt": ASKED, "response_0": "a", "response_1": "b"}, "hold several responses"),
        ({"prompt": ASKED, "Chosen": "a", "rejected": "b"}, 'columns={"Chosen": "chosen"}'),
        ({"prompt": ASKED, "chosen": "a", "bad one": "b"}, "column 'rejected' is missing"),
    ],
)
def test_other_forms_of_responses_are_refused_with_the_fix(row, fix):
    said = refusal(row)
    assert fix in said and "on_error" not in said


def test_a_bad_row_names_the_way_to_leave_it_out():
    rows = [PAIR | {"prompt": ASKED}, PAIR | {"prompt": ASKED, "chosen": " "}]
    with pytest.raises(tk.PairError) as caught:
        tk.load_pairs(rows)
    assert str(caught.value).startswith("row 1 (id '1'): chosen is empty; to leave bad rows out")
    assert 'load_pairs(source, on_error="skip")' in str(caught.value)
    assert caught.value.reason == "chosen is empty"
    assert len(tk.load_pairs(rows, on_error="skip")) == 1


# ---- cells that spell messages ----


def csv_of(rows, path):
    cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in r.items()} for r in rows]
    pd.DataFrame(cells).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("first", ["name", "id", "weight", "tool_calls"])
def test_messages_in_cells_are_read_whatever_key_comes_first(first, tmp_path):
    rows = [{"prompt": [{first: "x"} | user(ASKED)]} | CHAT]
    path = csv_of(rows, tmp_path / "c.csv")
    wanted = tk.load_pairs(rows)
    assert wanted[0].conversational
    assert tk.load_pairs(path) == wanted == tk.load_pairs(pd.read_csv(path))


def test_a_file_and_its_frame_give_the_same_pairs_or_the_same_refusal(tmp_path):
    for rows in (
        [CHAT | {"messages": [user(ASKED)]}],
        [WHOLE_CHAT],
        [WHOLE_CHAT | {"prompt": "q"}],
        [WHOLE_CHAT | {"prompt": ASKED, "messages": WHOLE_CHAT["chosen"]}],
    ):
        path = csv_of(rows, tmp_path / "c.csv")
        results = []
        for source in (path, pd.read_csv(path), rows):
            pairs = tk.load_pairs(source, on_error="skip")
            texts = [(p.prompt, p.chosen, p.rejected, p.notes) for p in pairs]
            results.append((texts, pairs.skipped.reason.tolist()))
        assert results[0] == results[1] == results[2]


def test_text_that_is_a_list_in_json_but_no_messages_stays_text(tmp_path):
    rows = [{"prompt": "List it.", "chosen": '[{"city": "Paris"}]', "rejected": "[{curly}] text"}]
    path = csv_of(rows, tmp_path / "c.csv")
    for source in (path, pd.read_csv(path), rows):
        assert (tk.load_pairs(source)[0].chosen) == rows[0]["chosen"]
