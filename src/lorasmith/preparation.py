"""The recipe of a preparation: which rows are read and what is made of them, checked strictly. Imports no torch."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lorasmith.errors import RecipeError
from lorasmith.recipe_checks import place_of
from lorasmith.recipe_file import Places, read_recipe, show
from lorasmith.recipe_sections import Name, Section, Sources, validated, weighted

PRIVATE_KINDS = ("email", "phone", "iban", "card", "ip", "url", "national_id", "secret", "address", "name", "link")
STRUCTURED_KINDS = PRIVATE_KINDS[:-3]  # recognised by their form; addresses and names are guessed, links mostly public
SHARE = 1e-9  # what shares of a split may differ from 1 by


def _kinds(value: Any) -> Any:
    listed = value if isinstance(value, list) else [value]
    if value not in ("structured", "all") and not (value and all(one in PRIVATE_KINDS for one in listed)):
        raise ValueError(f"expected structured, all, or some of {', '.join(PRIVATE_KINDS)}")
    return value


def _codes(value: Any) -> Any:
    if not isinstance(value, list) or not all(isinstance(one, str) and 2 <= len(one) <= 3 for one in value):
        raise ValueError("expected a list of language codes, such as [en, de]")
    return value


class Reading(Section):
    """How the sources are read, and the shape they are written in."""

    format: Literal[
        "auto",
        "messages",
        "sharegpt",
        "prompt+completion",
        "instruction+output",
        "question+answer",
        "marked-text",
        "text",
        "preference",
        "kto",
        "records",
    ] = Field("auto", description="Shape of the rows; auto: by each source's first rows; records: taken as they are.")
    to: Literal["messages", "prompt_completion", "instruction", "text", "preference", "kto", "openai"] | None = Field(
        None, description="Shape that is written; null: the source's own."
    )
    columns: dict[str, str] = Field({}, description="Our column names to the file's, such as {question: problem}.")
    subset: Name | None = Field(None, description="Configuration of a hub data set.")
    split: Name = Field("train", description="Split of a hub data set.")
    chunk_tokens: int = Field(1024, ge=16, description="Longest piece that a text or Markdown file is cut into.")
    strict: bool = Field(False, description="A broken row ends it, instead of being set aside.")


class Cleaning(Section):
    """What is mended in a text, and which rows go. A text that is not broken is never altered."""

    unicode: bool = Field(True, description="Mend mojibake, and compose letters and accents (NFC).")
    control: bool = Field(True, description="Remove control characters and byte order marks.")
    html: bool = Field(True, description="Remove tags left in prose, unless the row is about markup or code.")
    whitespace: bool = Field(True, description="Line ends as \\n, no blank ends, at most two blank lines in a row.")
    boilerplate: bool = Field(True, description="Remove lines of menus, cookies and sharing from plain text.")
    refusals: bool = Field(True, description="Leave out rows whose short answer only declines.")
    min_characters: int = Field(2, ge=1, description="Leave out shorter rows.")
    max_characters: int = Field(200_000, ge=1, description="Leave out longer rows.")
    languages: Annotated[list[str], BeforeValidator(_codes)] = Field(
        [], description="Keep rows in these languages alone, such as [en, de]; empty: all, unasked."
    )


class Duplicates(Section):
    """Which rows count as the same; one of them is kept."""

    exact: bool = Field(True, description="The same text.")
    normalised: bool = Field(True, description="The same but for case and white space.")
    near: bool = Field(True, description="Nearly the same words: MinHash with locality-sensitive hashing.")
    threshold: float = Field(
        0.65, ge=0.5, le=1, description="Jaccard similarity of words and pairs of words from which rows are near."
    )
    min_words: int = Field(8, ge=1, description="Rows with fewer words may differ in one and are never near.")
    keep: Literal["first", "longest"] = Field("first", description="Which of them is kept.")


class Private(Section):
    """Private data in the rows' texts."""

    action: Literal["replace", "drop", "keep"] = Field(
        "replace", description="Write typed placeholders such as [EMAIL_1], leave the row out, or do not look."
    )
    kinds: Annotated[str | list[str], BeforeValidator(_kinds)] = Field(
        "structured", description="structured: all but names and street addresses; all; or a list of kinds."
    )

    @property
    def wanted(self) -> frozenset[str]:
        """The kinds that are looked for."""
        if self.action == "keep":
            return frozenset()
        if isinstance(self.kinds, list):
            return frozenset(self.kinds)
        named = {"all": PRIVATE_KINDS, "structured": STRUCTURED_KINDS}
        return frozenset(named.get(self.kinds, (self.kinds,)))


class Decontamination(Section):
    """Rows that give away an evaluation set."""

    against: list[Name] = Field([], description="Evaluation sets: files, folders or hub ids.")
    ngram: int = Field(13, ge=5, le=50, description="Words in a row that may not be shared with them.")


class Splitting(Section):
    """Which rows are trained on, which evaluate while training, and which test at the end."""

    eval: float = Field(0.1, ge=0, lt=1, description="Share of the rows.")
    test: float = Field(0.1, ge=0, lt=1, description="Share of the rows.")
    by: Literal["hash", "group", "time"] = Field(
        "hash", description="By the prompt's hash; by that of a column's value; or the newest rows by a column."
    )
    column: Name | None = Field(None, description="The column of by: group or by: time.")
    label: Name | None = Field("label", description="The column whose balance is told; null: none.")


class Report(Section):
    """What the page tells beyond the counts."""

    tokenizer: Name | None = Field(None, description="A model or tokenizer.json to count tokens with.")
    model: Name | None = Field(None, description="A small causal model whose loss finds odd rows.")
    model_rows: int = Field(512, ge=1, description="Rows whose loss is taken, drawn evenly.")
    languages: bool = Field(True, description="Tell the languages of the rows.")
    examples: int = Field(5, ge=0, le=100, description="Examples shown of each change.")
    license: Name = Field("unknown", description="The data's license, for the card.")


class OpenAI(Section):
    """For `to: openai`: what a fine-tuning there would be charged and refused for."""

    epochs: int = Field(3, ge=1, le=50, description="Times that each row is trained.")
    price_per_million: float | None = Field(None, ge=0, description="US dollars for a million trained tokens.")
    context: int = Field(65_536, ge=1, description="Tokens that an example may have.")


class Preparation(Section):
    """Every parameter of one preparation."""

    sources: Sources = Field(
        description="File, pattern such as raw/*.jsonl, folder or hub id, or a list, each a name or {path, weight}."
    )
    output_dir: Name = Field(description="A folder such as data/support.")
    seed: int = Field(42, ge=0, lt=2**32)
    read: Reading = Reading()
    clean: Cleaning = Cleaning()
    duplicates: Duplicates = Duplicates()
    private: Private = Private()
    decontaminate: Decontamination = Decontamination()
    split: Splitting = Splitting()
    report: Report = Report()
    openai: OpenAI = OpenAI()

    @property
    def weighted_sources(self) -> list[tuple[str, float]]:
        """Each source with its weight."""
        return weighted(self.sources)


def load_preparation(path: Path | None, values: dict[str, Any], overrides: list[str]) -> Preparation:
    """Read and check a recipe file, or values from the command line where there is no file.

    Args:
        overrides: `section.key=value` texts from the command line, later ones win.

    Raises:
        RecipeError: At the first thing wrong, in the order of the file.
    """
    read, places = read_recipe(path, overrides, values)
    recipe = validated(Preparation, read, places)
    _check_together(recipe, places)
    return recipe


def _check_together(recipe: Preparation, places: Places) -> None:
    split, clean = recipe.split, recipe.clean
    if split.eval + split.test >= 1 - SHARE:
        place = place_of(places, ("split", "test"))
        raise RecipeError(
            f"{place}: split.eval and split.test are {split.eval:g} and {split.test:g}; expected a sum below 1, the "
            "rest is trained."
        )
    if (split.by != "hash") != (split.column is not None):
        place = place_of(places, ("split", "column"))
        raise RecipeError(f"{place}: split.by is {show(split.by)}; by group and by time need split.column, hash none.")
    if clean.min_characters > clean.max_characters:
        place = place_of(places, ("clean", "min_characters"))
        raise RecipeError(f"{place}: clean.min_characters is above clean.max_characters; no row is both.")
