# The one list of chores. `just` alone checks everything.
python := "python3"

default: check

# Everything that a contributor needs, into the active environment.
setup:
    {{python}} -m pip install -e '.[dev]'

fmt:
    ruff format .
    ruff check --fix .

# ASYNC127 wants a fork of httpx: the choice of httpx stands.
lint:
    ruff format --check .
    ruff check .
    flake8-async --enable ASYNC1,ASYNC2,ASYNC3 --disable ASYNC127 --startable-in-context-manager=run_local_recogniser,drain_on_signal,watch_sessions,write_records,post_all,upload_all,keep_fresh,follow_file $(git ls-files '*.py')

types:
    mypy

test *arguments:
    {{python}} -m pytest -n auto {{arguments}}

demo:
    {{python}} -m omi_rt demo

# All figures of bench/README.md against all peers: 45 minutes. Needs `pip install -e '.[bench]'`.
bench:
    {{python}} -m bench.run

# The same in small: 3 minutes.
bench-quick:
    {{python}} -m bench.run --quick

# What the embedded recogniser understands, whom it tells apart, how late it is: 4 minutes.
bench-recogniser *arguments:
    {{python}} -m bench.recogniser {{arguments}}

# A flame graph of a loaded server.
profile *arguments:
    {{python}} -m bench.flame {{arguments}}

# Fifty sessions for ten minutes with random drops, in real time.
soak *arguments:
    {{python}} -m bench.soak {{arguments}}

# A hundred sockets that flood a server in every way, beside a running session: a quarter of an hour.
flood *arguments:
    {{python}} -m bench.flood {{arguments}}

# Autobahn's fuzzing client against the WebSocket shell: a minute. It needs Python 2.7 (AUTOBAHN_PYTHON).
autobahn:
    {{python}} -m tests.autobahn

check: lint types test demo
