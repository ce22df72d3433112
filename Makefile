.PHONY: protos
PYTHON_IN_VENV := .venv/bin/python

protos: ## compile protos/*.proto
	$(PYTHON_IN_VENV) -m grpc_tools.protoc -I. --python_out=. --mypy_out=. --plugin=protoc-gen-mypy=.venv/bin/protoc-gen-mypy protos/*.proto
	$(PYTHON_IN_VENV) -m grpc_tools.protoc -I. --grpc_python_out=. --mypy_grpc_out=. --plugin=protoc-gen-mypy_grpc=.venv/bin/protoc-gen-mypy_grpc protos/affinity.proto
