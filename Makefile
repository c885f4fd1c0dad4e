# The commands of the README, in front of Meson. `make help` lists them.

BUILD ?= build
MESON_FLAGS ?=
JOBS ?= $(shell nproc)

.PHONY: all build run test test-guests test-foreign check lint sanitize verify bench bench-storage bench-qos bench-clones bench-net-faults fuzz silicon-campaign crash-campaign migrate-campaign migrate-breaks install clean help

all: build

help:
	@sed -n 's/^#: //p' Makefile

#: make build     compile lodge into $(BUILD)/
build:
	@scripts/dependencies build
	@[ -f $(BUILD)/build.ninja ] || meson setup $(BUILD) $(MESON_FLAGS) >$(BUILD).setup.log 2>&1 || \
	    { cat $(BUILD).setup.log; exit 1; }
	@rm -f $(BUILD).setup.log
	@ninja -C $(BUILD) -j $(JOBS) --quiet

#: make run       boot the default guest: a shell on a terminal; ARGS='-- uname -a' passes arguments
run: build
	@scripts/dependencies run
	@$(BUILD)/lodge run $(ARGS)

#: make test      all tests with the gcc build; the last line counts them
test:
	@scripts/dependencies build run test
	@$(MAKE) --no-print-directory build
	@scripts/run-tests $(BUILD) $(or $(RESULTS),$(BUILD)/results)

#: make check     everything that CI does: lint, sanitize, then make test
check:
	@.ci/run

#: make lint      clang-format, clang-tidy, man pages, shell scripts
lint:
	@scripts/dependencies build test check
	@scripts/lint

#: make sanitize  the second compiler's build, clang's, with warnings as errors and sanitizers; the tests in it
sanitize:
	@scripts/dependencies build run test check
	@[ -f build-sanitize/build.ninja ] || CC=clang-14 meson setup build-sanitize -Db_lundef=false \
	    -Db_sanitize=address,undefined -Dlodge_debug=true >/dev/null
	@ninja -C build-sanitize -j $(JOBS) --quiet
	@scripts/run-tests build-sanitize $(or $(RESULTS),build-sanitize/results) --suite unit --suite guest --suite silicon

#: make verify    interpreter and translator in lock-step over a boot and programs, some minutes
verify: build
	@scripts/dependencies run
	@LODGE_VERIFY_LONG=1 sh tests/linux/verify.sh $(BUILD)

#: make bench     speed natively, in lodge and in QEMU TCG, into docs/performance.md
bench: build
	@scripts/dependencies run image bench
	@bench/run $(BUILD) --write docs/performance.md

#: make bench-storage   random reads of NVMe and virtio-blk in lodge and in QEMU TCG, on the terminal
bench-storage: build
	@scripts/dependencies run image test bench
	@bench/storage $(BUILD) --runs 3

#: make bench-net-faults  network receive while memory is away: backup buffers against standing still, on the terminal
bench-net-faults: build
	@$(BUILD)/bench/net-faults

#: make bench-qos   urgent reads beside a saturating load, with classes and without; the curves into docs/qos.svg
bench-qos: build
	@scripts/dependencies run test bench
	@bench/qos $(BUILD) --runs 3 --cpus 2 --cache none --svg docs/qos.svg

#: make bench-clones   a command in a clone, part by part; 200 idle clones (N=): memory and processor of each
bench-clones: build
	@scripts/dependencies run
	@bench/clones $(BUILD) -n $${N:-200}

#: make test-guests  real software in the guest at length: zstd, stress-ng, Python's tests (an hour and more)
test-guests: build
	@scripts/dependencies run test
	@tests/linux/build_zstd.sh $(BUILD) full
	@tests/linux/stress.sh $(BUILD) full
	@tests/linux/python.sh $(BUILD)
	@tests/linux/smp.sh $(BUILD) 300

#: make test-foreign  what others made, unmodified: memtest86+, iPXE, Debian's installer, a cloud image made by FAI, a kernel with a driver for the generation id
test-foreign: build
	@scripts/dependencies run image test
	@tests/linux/foreign.sh $(BUILD)
	@tests/linux/generation.sh $(BUILD)

#: make fuzz      every fuzz target for FUZZ_TIME seconds each (60), and a million silicon cases
fuzz:
	@scripts/dependencies build test fuzz
	@scripts/fuzz $${FUZZ_TIME:-60}

#: make silicon-campaign   ten million cases against this processor (CASES=, SEED=); goes on where it was stopped
silicon-campaign: build
	@scripts/dependencies build test
	@nice -n 15 scripts/silicon-campaign $(BUILD) $${CASES:-10000000} $${SEED:-}

#: make migrate-campaign   a thousand moves of a VM under load (MOVES=), about an hour and a half; how long it stood
migrate-campaign: build
	@tests/linux/migrate_campaign.sh $(BUILD) $${MOVES:-1000}

#: make migrate-breaks   moves whose connection is cut or whose processes are killed, at every stage, some minutes
migrate-breaks: build
	@tests/linux/migrate_breaks.py $(BUILD) all

#: make crash-campaign   ten thousand crash points of the disk format (POINTS=, SEED=), a minute
crash-campaign: build
	@scripts/dependencies build test
	@nice -n 15 $(BUILD)/tests/crash/crash --points $${POINTS:-10000} --seed $${SEED:-1}

#: make install   into DESTDIR/usr/local
install: build
	@meson install -C $(BUILD) --quiet

#: make clean     remove build directories (the guest cache in .cache/ stays)
clean:
	@rm -rf $(BUILD) build-sanitize build-fuzz
