"""Ask a server with the official client:  python client.py [http://127.0.0.1:8080/v1] [KEY]"""

import sys

from openai import OpenAI

given = dict(enumerate(sys.argv[1:]))
url, key = given.get(0, "http://127.0.0.1:8080/v1"), given.get(1, "none")
client = OpenAI(base_url=url, api_key=key)
model = client.models.list().data[0].id
stream = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "Name three rivers."}], max_tokens=64, stream=True
)
for piece in stream:
    if piece.choices:
        print(piece.choices[0].delta.content or "", end="", flush=True)
print()
