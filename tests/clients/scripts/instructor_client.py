"""`instructor` in the mode that needs neither tools nor schemas: the model is asked for JSON in words, and what it
says is parsed. A model that cannot is an error of instructor's, after the retries. argv: base URL, model."""

import sys

import instructor
import openai
from instructor.core import IncompleteOutputException, InstructorRetryException
from pydantic import BaseModel

URL, MODEL = sys.argv[1:3]


class River(BaseModel):
    name: str


answers = []
client = instructor.from_openai(
    openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60), mode=instructor.Mode.MD_JSON
)
client.on("completion:response", answers.append)
asked = {"model": MODEL, "messages": [{"role": "user", "content": "Name a river."}], "max_tokens": 24}
try:
    river = client.chat.completions.create(response_model=River, max_retries=1, temperature=0, **asked)
    assert isinstance(river, River)
except (InstructorRetryException, IncompleteOutputException):
    assert answers, "the server answered, and what it said was no river"
assert all(answer.choices[0].finish_reason in ("stop", "length") for answer in answers)
