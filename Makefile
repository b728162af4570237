# Verbs. Everything about *what* is built lives in CMakeLists.txt.
#   make          build              make demo     train clm-60m on real text, start to report
#   make test     build and test     make san      the tests under ASan + UBSan      make tsan   under TSan
#   make mutants  plants bugs in the CUDA kernels and sees which test notices
#   make bench    benchmarks         make format   clang-format                      make lines  how big is it
#   make interop  our exported models in transformers and llama.cpp
#   make install  PREFIX=/usr/local  make clean    NATIVE=0 builds for any x86-64
#   make ptxas-report  registers and spills of every CUDA kernel
#   make apps     the programs alone, without tests
#   CUDA=1 builds, tests, measures and installs with nvcc's CUDA, in build/cuda
NATIVE ?= 1
SAN ?=
CUDA ?=
comma := ,
PREFIX ?= /usr/local
BUILD := build$(if $(SAN),/san-$(firstword $(subst $(comma), ,$(SAN))))$(if $(CUDA),/cuda)
FLAGS := -DLLATTE_NATIVE=$(NATIVE) -DLLATTE_SAN=$(SAN) -DLLATTE_CUDA=$(if $(CUDA),ON,OFF)
ROOMS := tensor autograd nn optim data models convert eval train apps test bench
CODE = $(shell git ls-files -co --exclude-standard '*.h' '*.cpp' '*.cu' '*.cuh')

.PHONY: all apps deps configure demo test run-tests san tsan mutants interop bench format format-check lines ptxas-report install clean
all: configure
	@cmake --build $(BUILD) -j$(shell nproc)

apps: configure
	@cmake --build $(BUILD) -j$(shell nproc) --target apps

configure: deps
	@cmake -S . -B $(BUILD) $(FLAGS) | grep '^-- llatte' || cmake -S . -B $(BUILD) $(FLAGS)

deps:
	@scripts/deps

demo: configure
	@BUILD=$(BUILD) scripts/demo

test: all
	@scripts/run-tests $(BUILD)

san:
	@$(MAKE) --no-print-directory SAN=address,undefined test

tsan:
	@$(MAKE) --no-print-directory SAN=thread test

mutants: deps
	@scripts/mutants

interop: all
	@scripts/interop $(BUILD)

bench: all
	@scripts/bench $(BUILD) $(if $(CUDA),cuda,cpu) $(OP)

format:
	@clang-format -i $(CODE)

format-check:
	@clang-format --dry-run -Werror $(CODE)

lines:
	@for d in $(wildcard $(ROOMS)); do printf '%-10s %6d\n' $$d $$(find $$d -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs -r cat | wc -l); done

ptxas-report:
	@scripts/ptxas-report

install: all
	@cmake --install $(BUILD) --prefix $(PREFIX)

clean:
	rm -rf build
