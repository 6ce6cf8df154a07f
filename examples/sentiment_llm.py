"""Let a language model on each of three machines judge letters; two machines must agree.

Run: python examples/sentiment_llm.py
No model is needed: a small scripted server plays one, and misreads irony on one of the machines.
With a server of yours, such as llama.cpp's or Ollama's:
    python examples/sentiment_llm.py --url http://127.0.0.1:11434/v1 --model gemma3
Address, model and system prompt are the operator's, in config.toml; a job brings rows and a
template.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from machines import machines

from federated.jobs.types import Column, JobSpec

LETTERS = [
    ("Berg", "I love the new lamp, thank you!"),
    ("Dahl", "The chair arrived broken and nobody answers."),
    ("Ek", "The parcel came on Tuesday."),
    ("Falk", "Just great, the third rainy week without my tent."),
    ("Gran", "Excellent rope, it holds."),
    ("Holm", "I am disappointed, the paint is not blue."),
]
MOODS = ["good", "bad", "neutral"]
SETTINGS = """
[jobs.llm.mood]
url = "{url}"
model = "{model}"
system = "You judge the mood of customers' letters."
groups = ["shop"]
"""


class Scripted(BaseHTTPRequestHandler):
    """Answers /chat/completions as an OpenAI-compatible server does, by looking for words."""

    def do_POST(self) -> None:
        """Judge each row of the prompt."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = asked["messages"][-1]["content"]
        rows = re.findall(r"<<<ROW (\d+) \w+>>>\n(.*?)\n<<<END", text, re.DOTALL)
        naive = self.path.startswith("/naive/")
        said = [{"k": int(k), "mood": mood_of(letter, naive=naive)} for k, letter in rows]
        choice = {"message": {"role": "assistant", "content": json.dumps(said)}}
        body = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args) -> None:
        """Say nothing on the terminal."""


def mood_of(letter: str, *, naive: bool) -> str:
    """What the scripted model thinks; a naive one takes irony at its word."""
    if re.search(r"broken|disappointed", letter) or ("Just great" in letter and not naive):
        return "bad"
    return "good" if re.search(r"love|great|[Ee]xcellent", letter) else "neutral"


def main() -> None:
    """Use the model at --url, or the scripted one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", help="an OpenAI-compatible server, up to and with /v1")
    parser.add_argument("--model", default="scripted", help="the server's name of the model")
    args = parser.parse_args()
    if args.url:
        judge([args.url] * 3, args.model)
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at = f"http://127.0.0.1:{server.server_port}"
    judge([f"{at}/v1", f"{at}/v1", f"{at}/naive/v1"], args.model)
    server.shutdown()
    server.server_close()


def judge(urls: list[str], model: str) -> None:
    """Three machines of three owners, each with a model at its URL; a fourth asks."""
    shops = ["north", "south", "west"]
    settings = {
        name: SETTINGS.format(url=url, model=model) for name, url in zip(shops, urls, strict=True)
    }
    with machines("office", *shops, settings=settings, group="shop") as (office, *_):
        ask(office)


def ask(office) -> None:
    """Submit the letters, tell of disagreements, print the moods."""
    spec = JobSpec(
        handler="llm:mood",
        rows=[{"name": name, "letter": letter} for name, letter in LETTERS],
        columns=[Column(name="mood", type="enum", enum=MOODS)],
        template="How does {{name}} feel, who writes this?\n{{letter}}",
        params={"temperature": 0, "seed": 1},
        verify="quorum:2",
        group="shop",
        title="mood of letters",
    )
    with office.jobs() as jobs:
        job = jobs.submit(spec)
        for event in jobs.watch(job):
            if event.name == "conflict":
                who = ", ".join(claim["machine"] for claim in event.data["claims"])
                print(f"letter {event.data['k']}: {who} do not all say the same")
        for row in jobs.rows(job):
            mood = row.row["mood"] if row.row else f"({row.reason})"
            print(f"  {row.source['name']:5} {mood:8} level {row.level}  {row.source['letter']}")
        state = jobs.status(job)
        print(f"{state.state}: {state.by_state['ok']} of {state.rows} letters judged")


if __name__ == "__main__":
    main()
