# make serve   exports the bundled models and serves them; MODEL=<source> [NAME=<name>] for another model, TARGET=<targets>
# make test    makes the same environment and runs the tests
# make help    lists the rest

PYTHON ?= python3
BIN := .venv/bin
ARTIFACTS ?= artifacts

MODEL ?=
TARGET ?=
OPTIONS := --artifacts $(ARTIFACTS)$(if $(TARGET), --target "$(TARGET)")
# What the export would call it: a hub id without its revision; ckpt.pt after its folder, any other .pt by its own name.
PLACE := $(abspath $(firstword $(subst @, ,$(MODEL))))
NAME ?= $(notdir $(patsubst %/ckpt,%,$(patsubst %.pt,%,$(PLACE:%.pth=%))))
BUNDLED := bert-mini gpt-mini vit-digits mixer-digits

.PHONY: help install serve test test-large bench bench-peers test-clients ray-test docker-test docker-test-large lock check format protos
.DEFAULT_GOAL := help

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

install: ## make .venv with all that exporting and serving need
	@$(PYTHON) .ci/install.py export

serve: install ## export the bundled models (or MODEL=<source>) and serve them on 8001 (gRPC) and 8002 (HTTP)
ifeq ($(MODEL),)
	@$(BIN)/python -m export $(BUNDLED) $(OPTIONS)
	@exec $(BIN)/python -m server --artifacts $(ARTIFACTS)
else
	@$(BIN)/python -m export "$(MODEL)" --name "$(NAME)" $(OPTIONS)
	@exec $(BIN)/python -m server --artifacts $(ARTIFACTS) --models "$(NAME)"
endif

.venv-dev:
	@$(PYTHON) .ci/install.py export dev
.PHONY: .venv-dev

# A worker for each core, and each file of tests in one worker, which starts the servers that it needs. The order is that
# of tests/conftest.py.
WORKERS := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: .venv-dev ## run the tests
	@$(BIN)/python -m pytest $(WORKERS)

test-large: .venv-dev ## run the tests on models of the published sizes, and rehearse what measures: some minutes
	@$(BIN)/python -m pytest -m large tests/test_published_sizes.py tests/export tests/bench tests/gpu

bench: .venv-dev ## measure speed beside peers (those of `make bench-peers` if they are there), and judge it: BENCH=--quick
	@$(BIN)/python -m tests.bench $(BENCH)

TRITON_PYTHON ?= /usr/bin/python3
bench-peers: ## make environments for peers that cannot share ours: some gigabytes
	@$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -r tests/bench/peers.txt
# optimum-intel requires torchvision, which no peer needs. Where its build does not fit that of torch, no import works.
	@.venv-peers/bin/python -m pip uninstall --quiet --yes torchvision
	@$(TRITON_PYTHON) -m venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet -r tests/bench/triton.txt
	@$(PYTHON) -m venv .venv-torchvision
	.venv-torchvision/bin/python -m pip install --quiet -r tests/bench/torchvision.txt

test-clients: .venv-dev ## try the clients of KServe and MLServer, in environments of their own: a gigabyte
	@for client in kserve mlserver; do \
		$(PYTHON) -m venv .venv-$$client && \
		.venv-$$client/bin/python -m pip install --quiet -r tests/clients/$$client.txt || exit 1; \
	done
	@$(BIN)/python -m pytest -v tests/clients/test_clients.py

ray-test: .venv-dev ## try the server behind Ray Serve on a cluster of two nodes, in an environment of its own: a gigabyte
	@$(PYTHON) -m venv .venv-ray
	@.venv-ray/bin/python -m pip install --quiet --editable .[ray]
	@$(BIN)/python -m pytest -v -m ray tests/ray

docker-test: .venv-dev ## build the image of the CPU server and try it, with Docker or buildah
	@$(BIN)/python -m pytest -v -m docker tests/docker

docker-test-large: .venv-dev ## the same with the images of gigabytes: the server with CUDA, without a GPU; the export
	@$(BIN)/python -m pytest -v -m docker_large tests/docker

lock: ## pin the newest packages that pyproject.toml admits for the servers' images, with hashes, in docker/lock
	@$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet uv
	@for image in cpu cuda; do \
		$(PYTHON) docker/requirements.py $$image | .venv-lock/bin/uv pip compile - --quiet --upgrade --universal \
			--python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock" \
			--output-file docker/lock/$$image.txt || exit 1; \
	done

check: .venv-dev ## lint, format, types, import contracts, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory protos
	git diff --exit-code -- protos

format: .venv-dev ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: .venv-dev ## compile protos/*.proto
	@PATH=$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -I. --python_out=. --mypy_out=quiet:. protos/*.proto
	@PATH=$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -I. --grpc_python_out=. --mypy_grpc_out=quiet:. protos/affinity.proto
