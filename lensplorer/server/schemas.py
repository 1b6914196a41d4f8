"""The bodies of the next-token visualization's requests and answers, field for field. What is not a field is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: Texts and lists are bounded, so that the work a request makes is.
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(max_length=2**20)]
Text = Annotated[str, Field(max_length=2**20)]
Count = Annotated[int, Field(ge=1, le=2**20)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Body(BaseModel):
    """What every request's body shares: no unknown field, no NaN."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Params(Body):
    """The knobs of the sampling pipeline. The defaults are those of the preset "balanced"."""

    greedy: bool = Field(False, description="Take the most likely token whatever the temperature.")
    temperature: float = Field(0.7, ge=0, description="Divides the logits; 0 is greedy.")
    top_p: float = Field(0.8, ge=0, le=1, description="Keep the smallest set of most likely tokens whose mass reaches it.")
    repetition_penalty: float = Field(1.05, gt=0)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    seed: Seed | None = Field(None, description="The same seed gives the same tokens; null draws afresh each time.")
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field([], max_length=32)
    top_k: int = Field(0, ge=0, le=2**20, description="Keep the k most likely tokens; 0 keeps all.")
    min_p: float = Field(0.0, ge=0, le=1, description="Drop tokens less likely than this share of the most likely one.")


class ConstraintBody(Body):
    """What a completion must match."""

    enabled: bool = False
    type: str = Field("multiple_choice", max_length=100, description='"multiple_choice", "regex", "cfg" (Lark) or "json_schema".')
    text: str = Field("", alias="schema", max_length=20_000, description="Choices one a line or a JSON list; expression; grammar; schema.")


class PromptBody(Body):
    """A prompt and what has been said after it."""

    branch_id: str = Field("default", max_length=200, description="Named in nothing else: draws depend on the seed and the position alone.")
    prompt: Text = ""
    system_prompt: Text = "You are a helpful assistant."
    use_chat_template: bool | None = Field(None, description="null or true: where the tokenizer has a template.")
    completion_ids: TokenIds = []


class PreviewRequest(PromptBody):
    top_k: Count = 10
    params: Params = Params.model_validate({})
    constraint: ConstraintBody = ConstraintBody.model_validate({})


class StepRequest(PreviewRequest):
    reset_rng: bool = Field(False, description="Draws are a function of seed and position, so there is no generator to reset.")
    force_token_id: TokenId | None = None
    force_text: Text | None = None


class AttributionRequest(PromptBody):
    target_index: int = Field(0, ge=0, le=2**20, description="Which token of the completion, or the one after it.")
    target_token_id: TokenId | None = Field(None, description="The token explained; null: the one that stands there.")
    method: str = Field("off", max_length=100)


class LoadRequest(Body):
    model_id: str = Field(max_length=500)


# -- answers -----------------------------------------------------------------------------------------------------------------------------


class ModelDescription(BaseModel):
    model_id: str
    device: str
    dtype: str
    has_chat_template: bool
    eos_token_id: int | None
    vocab_size: int | None


class ModelStatus(ModelDescription):
    loading: bool
    ready: bool
    error: str | None
    serving: str | None = Field(description="The model that answers while another is loaded, or after that failed.")


class LoadAnswer(BaseModel):
    ok: bool
    model_id: str


class TokenPill(BaseModel):
    id: int
    text: str = Field(description="Exact text.")
    display: str = Field(description="With spaces and newlines drawn.")
    special: bool


class Candidate(TokenPill):
    p_base: float = Field(description="Probability in the model's own distribution.")
    p_final: float = Field(description="Probability after everything; 0 when excluded.")
    kept: bool
    valid: bool = Field(description="Whether the constraint admits it.")


class Distribution(BaseModel):
    top_k: int
    tokens: list[Candidate]
    other_p_base: float
    other_p_final: float
    kept_token_count: int
    constraint_active: bool
    constraint_type: str | None


class Preview(BaseModel):
    model: ModelDescription
    prompt_tokens: list[TokenPill]
    completion_tokens: list[TokenPill]
    context_token_count: int
    dist: Distribution | None = Field(description="null where there is nothing to go on from.")


class Selected(BaseModel):
    id: int
    text: str
    display: str
    p_final: float | None = Field(description="null when forced.")


class AppendedMeta(BaseModel):
    dist: Distribution
    selected_id: int
    forced: bool
    forced_by: Literal["token", "text"] | None


class Step(BaseModel):
    model: ModelDescription
    dist: Distribution | None
    selected: Selected | None = Field(description="null when text was forced.")
    appended: list[TokenPill]
    appended_meta: list[AppendedMeta]
    new_completion_ids: list[int]
    done: bool
    stop_reason: Literal["eos_token", "stop_sequence", "constraint_complete", "context_full"] | None


class Attribution(BaseModel):
    ok: bool
    attributions: list[float]
    source_len: int
    context_len: int | None = None
    target_id: int | None = None
    model_id: str | None = None
    method: str | None = None


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: Any = Field(description="A sentence; of a body that is not as described, a list of {loc, msg, type}.")
