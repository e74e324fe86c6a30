"""A question is divided among workers, who read the sources side by side and hand over what they found."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from flat.tree import Cede, Charter, Node, Spawn, SpawnTarget, StandardExecutor, cede, spawn, tool, transition

SOURCES = Path(__file__).parent / "sources"


class Task(BaseModel):
    """The state of a worker."""

    question: str


@tool("Search the sources for a word; gives the lines that have it", safe=True)  # reading may happen twice
def search(word: str) -> list[str]:
    return [
        f"{source.name}: {line}"
        for source in sorted(SOURCES.glob("*.txt"))
        for line in source.read_text(encoding="utf-8").splitlines()
        if word.lower() in line.lower()
    ]


@transition("Hand over what you found")
def report(finding: str, source: str) -> Cede:
    return cede(f"{finding} ({source})")


@transition("Give each part of the question to a researcher of its own")
def divide(questions: list[str]) -> Spawn:
    return spawn([SpawnTarget(researcher, Task(question=one), brief=one) for one in questions])


researcher = Node(
    "Answer one question from the sources, and from nothing else.",
    Task,
    name="researcher",
    worker=True,
    tools=[search],
    transitions=[report],
    max_steps=5,
)
lead = Node(
    "Divide the user's question, and answer it from what the researchers hand over. Name the sources.",
    name="lead",
    transitions=[divide],
)
charter = Charter(
    "research",
    # Any provider: anthropic/…, gemini/…, ollama/… with its key in the environment.
    executor=StandardExecutor(model="openai/gpt-5-mini", retry={"backoffs": [1, 4, 16]}),
    nodes=[lead, researcher],
)
