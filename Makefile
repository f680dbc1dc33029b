# SPDX-License-Identifier: GPL-2.0
#
# make                build build/fasttrack.ko and build/fasttrack, for the newest stock Debian kernel
#                     with Rust (and for the VM), with that kernel's own compilers
# make KDIR=DIR       the same with this machine's compilers, for the kernel tree DIR, which has to
#                     have the Rust metadata (rust/libkernel.rmeta and so on)
# make router         the same for the Debian kernel that this machine runs
# make install        install what was built on this machine
# make demo           a router in a VM, without and with fasttrack
# make test           all tests
# make bench          count the instructions that a packet costs; BASELINE=update: and make them
#                     the baseline; ARGS=…: only some, or others (see tests/bench/run)
# make bench-cpus     what a second processor is good for, and which memory two of them share; BASELINE likewise
# make bench-native   the same in nanoseconds, in User-Mode Linux; BASELINE and ARGS likewise
# make bench-engine   how long the engine's parts take on this machine; ARGS=…: for Criterion
# FLAVOUR=amd64       with make or make bench: Debian's kernel for real machines, which has PPPoE; what is built
#                     is for that kernel then
# BUILD=DIR           with any of these: build in DIR instead of build/ (the VM uses build/)
# make selftests      the kernel's own tests of netfilter, without and with fasttrack
# make lint           formatting and lints
# make clean          delete build/; what is slow to make is kept in the cache

SHELL := /bin/bash
.DELETE_ON_ERROR:
.SUFFIXES:

root := $(patsubst %/,%,$(dir $(realpath $(firstword $(MAKEFILE_LIST)))))
build := $(abspath $(or $(BUILD),$(root)/build))
PREFIX ?= /usr/local
# For what runs in the VM.
export FLAVOUR

# Where commands run that need a compiler: in the tree that scripts/toolchain makes, or, if the kernel
# tree was given, on this machine as it is.
ifdef KDIR
kdir := $(abspath $(KDIR))
inside :=
else
ifeq ($(filter router,$(MAKECMDGOALS)),)
kernel := $(root)/scripts/kernel $(if $(FLAVOUR),--flavour $(FLAVOUR))
else
kernel := $(root)/scripts/kernel --release $(shell uname -r)
endif
kdir = $(shell $(kernel) --kdir)
inside := $(root)/scripts/in-toolchain --
endif

.PHONY: all module tool prepare router install uninstall demo test bench bench-native bench-cpus bench-engine selftests lint clean

all: module tool

ifdef KDIR
prepare:
	@$(root)/scripts/check-kdir $(kdir)
else
prepare:
	@$(root)/scripts/toolchain
	@$(kernel)
endif

module: prepare
	@mkdir -p $(build)/module
	+@$(inside) $(MAKE) -C $(kdir) M=$(root) MO=$(build)/module modules
	@cp $(kdir)/include/config/kernel.release $(build)/release
	@cp $(build)/module/fasttrack.ko $(build)/fasttrack.ko

tool: prepare
	@mkdir -p $(build)
	+@$(inside) cargo build --release --locked --manifest-path $(root)/userspace-tool/Cargo.toml \
		--target-dir $(build)/cargo
	@cp $(build)/cargo/release/fasttrack $(build)/fasttrack

router: all

demo: all
	@$(root)/tests/demo/run

test: all
	@$(root)/tests/run

bench: all
	@mkdir -p $(build)/floor
	+@$(inside) $(MAKE) -C $(kdir) M=$(root)/tests/bench/floor MO=$(build)/floor modules
	@$(root)/tests/bench/run $(if $(filter update,$(BASELINE)),--update-baseline) $(ARGS)

# The module for User-Mode Linux, whose modules lie farther from the kernel than compilers expect.
native := $(build)/native

bench-native: tool
	@$(root)/scripts/uml-kernel
	@mkdir -p $(native)/module $(native)/floor
	+@uml=$$($(root)/scripts/uml-kernel --kdir) && \
		$(inside) $(MAKE) -C $$uml ARCH=um SUBARCH=x86 M=$(root) MO=$(native)/module modules && \
		$(inside) $(MAKE) -C $$uml ARCH=um SUBARCH=x86 M=$(root)/tests/bench/floor MO=$(native)/floor modules
	@$(root)/tests/bench/run --native $(if $(filter update,$(BASELINE)),--update-baseline) $(ARGS)

bench-cpus: all
	@$(root)/tests/bench/cpus $(if $(filter update,$(BASELINE)),--update-baseline) $(ARGS)

bench-engine: prepare
	@$(inside) cargo bench --locked --manifest-path $(root)/module/engine/benches/Cargo.toml \
		--target-dir $(build)/engine-benches -- $(ARGS)

selftests: all
	@$(root)/tests/selftests/run

lint: prepare
	@$(root)/tests/lint

clean:
	rm -rf $(build)

# On the machine that is to run it. DESTDIR is honoured; depmod is left to the package then.
release = $(shell cat $(build)/release)

install:
	@test -e $(build)/fasttrack.ko -a -e $(build)/fasttrack || \
		{ echo "install: nothing has been built yet: run make router (or make KDIR=...)" >&2; exit 1; }
	install -D -m 644 $(build)/fasttrack.ko $(DESTDIR)/lib/modules/$(release)/updates/fasttrack.ko
	install -D -m 755 $(build)/fasttrack $(DESTDIR)$(PREFIX)/sbin/fasttrack
	install -D -m 644 $(root)/userspace-tool/fasttrack.8 $(DESTDIR)$(PREFIX)/share/man/man8/fasttrack.8
	install -D -m 644 $(root)/userspace-tool/completions/fasttrack.bash \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/fasttrack
	test -n "$(DESTDIR)" || depmod $(release)

uninstall:
	rm -f $(DESTDIR)/lib/modules/*/updates/fasttrack.ko $(DESTDIR)$(PREFIX)/sbin/fasttrack \
		$(DESTDIR)$(PREFIX)/share/man/man8/fasttrack.8 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/fasttrack
