# softnlb: the two commands of a newcomer are `make demo` and `make test`.
# Both set up what they need first, say what that is, and install nothing the second time.

.PHONY: help setup demo test check fuzz soak model bpf install-unit clean

VENV := .venv/bin
SEEDS ?= 20000
SECONDS ?= 60
SOFTNLB ?= $(CURDIR)/$(VENV)/softnlb
START ?= 0

help:
	@echo "make demo    a real 4-host cluster on this machine: flooding, drainstop, a host killed"
	@echo "make test    all tests"
	@echo "make check   style, types, import rule"
	@echo "make soak    SEEDS=$(SEEDS) simulated episodes, all cores; START=fresh: seeds never tried;"
	@echo "             COMPILED=1: twice as fast, with the protocol compiled first (gcc, a minute)"
	@echo "make fuzz    SECONDS=$(SECONDS) of damaged bytes for each reader of bytes from outside"
	@echo "make model   the hand-over, checked by spin on every path (QUICK=quick: seconds)"
	@echo "make bpf     the eBPF program anew, when its source changed: needs Debian 12's clang"
	@echo "make install-unit  the systemd unit of a host, for /etc/softnlb/NAME.toml"
	@echo "make setup   only what demo needs: .venv with softnlb in it"
	@echo "make clean   remove what make made"

setup:
	@sh .ci/setup demo

demo: setup
	@$(VENV)/python -m labs.demo

test:
	@sh .ci/setup test
	@$(VENV)/python -m pytest --numprocesses 2 --dist loadfile

check:
	@sh .ci/setup test
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy
	@$(VENV)/lint-imports

fuzz:
	@sh .ci/setup test
	@$(VENV)/python -m tests.fuzz --seconds $(SECONDS)

soak:
	@sh .ci/setup test
	@$(if $(COMPILED),tests/simulator/compiled,$(VENV)/python -m tests.simulator) \
		--seeds $(SEEDS) --start $(START)

model:
	@sh .ci/setup test
	@convergence/model/run $(QUICK)

bpf:
	@sh .ci/setup test
	@$(MAKE) --no-print-directory -C softnlb/bpf

install-unit:
	@install -d $(DESTDIR)/etc/systemd/system
	@sed -e 's|@SOFTNLB@|$(SOFTNLB)|' -e 's|@ROOT@|$(CURDIR)|' softnlb/systemd/softnlb@.service \
	    > $(DESTDIR)/etc/systemd/system/softnlb@.service
	@echo "Installed. Next: systemctl daemon-reload; systemctl enable --now softnlb@web"
	@echo "runs the host of /etc/softnlb/web.toml. Members of a group softnlb may command it."

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
