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
    flake8-async --enable ASYNC1,ASYNC2,ASYNC3 --disable ASYNC127 $(git ls-files '*.py')

types:
    mypy

test *arguments:
    {{python}} -m pytest {{arguments}}

demo:
    omi-rt demo

check: lint types test demo
