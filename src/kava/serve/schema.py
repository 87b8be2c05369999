"""What a request may say. Fields that other servers have and this one cannot heed are taken at their neutral value alone."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Zero = Annotated[float, Field(ge=0, le=0)]
NoItems = Annotated[list[Any], Field(max_length=0)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]


def _of_one_question(kind: Any) -> Any:
    """Refuses the ablations of `kava evaluate` that are made of a whole set of questions."""
    if kind in ("mean", "swap", "noise"):
        raise ValueError(f"{kind} is made of the latents of several questions; a question alone has zero")
    return kind


Ablation = Annotated[Literal["zero"], BeforeValidator(_of_one_question)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Closed):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] | None = None


class TextPart(_Closed):
    type: Literal["text"]
    text: str


class Message(_Closed):
    role: Literal["user", "system", "developer", "assistant", "tool", "function"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponseFormat(_Closed):
    type: Literal["text"]


class AnswerRequest(_Closed):
    """The fields that both kinds of completion have.

    reasoning       latent: think in latents; cot: write the steps; direct: neither. Default: as the student was trained
    num_tokens      M, the number of latents; default: the student's
    num_iterations  T, Jacobi iterations; default: the student's
    ablate          zero: zeros in place of what was thought, as `kava evaluate --ablate zero`
    ablate_slots    only in these latents, counted from 0; default: in all
    temperature     0: the likeliest token. Default: the recipe's, which is 0 unless it says otherwise
    """

    model: str | None = None
    reasoning: Literal["latent", "cot", "direct"] | None = None
    num_tokens: int | None = Field(None, ge=0, le=4096)
    num_iterations: int | None = Field(None, ge=0, le=4096)
    ablate: Ablation | None = None
    ablate_slots: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=4096)] | None = None
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="not used")
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(AnswerRequest):
    """`messages`: one user message, the question. The student answers single questions and knows no earlier turns."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    tools: NoItems | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="not used")
    response_format: ResponseFormat | None = None
    metadata: dict[str, str] | None = Field(None, description="not used")
    store: Literal[False] | None = None


class CompletionRequest(AnswerRequest):
    """`prompt`: a question, or several."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class LensRequest(_Closed):
    """`question`, looked into with M and T as an answer to it has them; each latent costs passes, so they are fewer."""

    question: str
    model: str | None = None
    num_tokens: int | None = Field(None, ge=0, le=64)
    num_iterations: int | None = Field(None, ge=0, le=64)
    top: int = Field(5, ge=1, le=20)
