# Tiercel: GNU make. `make help` lists the targets.
#
# Variables worth knowing:
#   BUILD=build      where everything is built
#   CC=gcc|clang     the compiler
#   WERROR=1         warnings are errors (so does CI=true)
#   ALLOC=libc       libc's allocator instead of jemalloc
#   LTO=0            no link-time optimisation of build/tiercel (gcc has it, clang has not)
#   SAN=address|thread   sanitizer build (use `make asan`, `make tsan`)
#   MODULES="base resp"  compile only these src/<module> directories, for a unit
#                    test while others do not build; give it a BUILD of its own:
#                    make unit-resp MODULES="base resp" BUILD=build/resp
#   V=1              show the commands
#   TRACES=traces    the directory of traces for `make bench-hit-ratio`
#   ARGS=...         more options for `make run`

BUILD   ?= build
MODULES ?=
ALLOC   ?= jemalloc
SAN     ?=
WERROR  ?= $(if $(filter true,$(CI)),1,)
PYTHON  ?= $(firstword $(wildcard /usr/bin/python3) python3)
CLANG   ?= clang
# The format check is pinned to version 14: other versions format differently.
CLANG_FORMAT ?= $(firstword $(shell command -v clang-format-14) clang-format)
FUZZ_SECONDS ?= 20
TRACES  ?= traces
PREFIX  ?= /usr/local
BINDIR  ?= $(PREFIX)/bin
SYSCONFDIR ?= $(if $(filter /usr,$(PREFIX)),/etc,$(PREFIX)/etc)
MANDIR  ?= $(PREFIX)/share/man
SYSTEMDDIR ?= $(PREFIX)/lib/systemd/system
DESTDIR ?=
DOCKER  ?= docker
VERSION := $(shell sed -n 's/^.define TIERCEL_VERSION "\(.*\)"/\1/p' include/tiercel/version.h)

.DEFAULT_GOAL := all
ifeq ($(origin CC),default)
CC := $(if $(shell command -v gcc),gcc,cc)
endif
Q   := $(if $(V),,@)
say = $(if $(V),,@printf '  %-7s %s\n' $(1) $(2))

# ---- flags -----------------------------------------------------------------

# -O3: 5 to 8 % fewer instructions a request than -O2
OPT      ?= -O3
CFLAGS   ?=
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla \
            -Wwrite-strings -Wformat=2 -Wundef
BASE_CFLAGS := -std=gnu11 -g -fno-omit-frame-pointer $(WARNINGS)
BASE_LDFLAGS :=
BASE_CPPFLAGS := -D_GNU_SOURCE -Iinclude -Isrc -Itbl

ifeq ($(WERROR),1)
BASE_CFLAGS += -Werror
endif
ifeq ($(SAN),)
BASE_CFLAGS += $(OPT) -fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
else ifeq ($(SAN),address)
BASE_CFLAGS += -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
BASE_LDFLAGS += -fsanitize=address,undefined
else ifeq ($(SAN),thread)
BASE_CFLAGS += -O1 -fsanitize=thread
BASE_LDFLAGS += -fsanitize=thread
else
$(error SAN is one of: address, thread)
endif
# The server is optimised as a whole: it executes 6 to 9 % fewer instructions a request. Its objects
# hold machine code as well, with which tests are linked faster.
LTO ?= $(if $(SAN)$(findstring clang,$(shell $(CC) --version)),0,1)
ifeq ($(LTO),1)
BASE_CFLAGS += -flto=auto -ffat-lto-objects
NO_LTO := -fno-lto
endif

# ---- libraries: pkg-config where it knows them, a plain -l elsewhere ---------

PKG_CONFIG ?= pkg-config
pkg_cflags = $(shell $(PKG_CONFIG) --cflags $(1) 2>/dev/null)
pkg_libs   = $(shell $(PKG_CONFIG) --libs $(1) 2>/dev/null || echo $(2))

LIB_CFLAGS := $(call pkg_cflags,libuv) $(call pkg_cflags,hiredis) $(call pkg_cflags,lmdb) \
              $(call pkg_cflags,libzstd) $(call pkg_cflags,libxxhash) $(call pkg_cflags,liblzf) $(call pkg_cflags,libssl libcrypto) \
              $(call pkg_cflags,libmicrohttpd) $(call pkg_cflags,lua5.1 lua5.1-cjson lua5.1-bitop)
LIBS       := $(call pkg_libs,libuv,-luv) $(call pkg_libs,hiredis,-lhiredis) $(call pkg_libs,lmdb,-llmdb) \
              $(call pkg_libs,libzstd,-lzstd) $(call pkg_libs,libxxhash,-lxxhash) \
              $(call pkg_libs,liblzf,-llzf) $(call pkg_libs,libssl libcrypto,-lssl -lcrypto) $(call pkg_libs,libmicrohttpd,-lmicrohttpd) \
              $(call pkg_libs,lua5.1-cjson lua5.1-bitop lua5.1,-llua5.1-cjson -llua5.1-bitop -llua5.1)
# Sanitizers bring their own allocator.
ifeq ($(ALLOC)$(SAN),jemalloc)
BASE_CPPFLAGS += -DTIERCEL_JEMALLOC=1
LIB_CFLAGS += $(call pkg_cflags,jemalloc)
LIBS       += $(call pkg_libs,jemalloc,-ljemalloc)
endif
LIBS       += -lpthread -lm
CMOCKA     := $(call pkg_libs,cmocka,-lcmocka)

ALL_CFLAGS  = $(BASE_CFLAGS) $(BASE_CPPFLAGS) $(LIB_CFLAGS) $(CPPFLAGS) $(CFLAGS)
ALL_LDFLAGS = $(BASE_LDFLAGS) $(LDFLAGS)

# ---- sources ---------------------------------------------------------------

LIB_SRCS  := $(sort $(if $(MODULES),$(foreach m,$(MODULES),$(wildcard src/$(m)/*.c)),$(wildcard src/*/*.c)))
LIB_OBJS  := $(LIB_SRCS:%.c=$(BUILD)/obj/%.o)
MAIN_OBJ  := $(BUILD)/obj/src/main.o
ARCHIVE   := $(BUILD)/libtiercel.a
BIN       := $(BUILD)/tiercel
BENCH     := $(BUILD)/tiercel-bench
BENCH_SRCS := $(sort $(wildcard bench/loadgen/*.c))
BENCH_OBJS := $(BENCH_SRCS:%.c=$(BUILD)/obj/%.o)
LINK      := $(BUILD)/tiercel-link
HIT_RATIO := $(BUILD)/tiercel-hit-ratio
HIT_RATIO_SRCS := $(sort $(wildcard bench/hit_ratio/*.c))
HIT_RATIO_OBJS := $(HIT_RATIO_SRCS:%.c=$(BUILD)/obj/%.o)
# UNIT_SKIP: names of unit tests to leave out
UNIT_SRCS := $(filter-out $(UNIT_SKIP:%=tests/unit/test_%.c),$(sort $(wildcard tests/unit/test_*.c)))
UNIT_BINS := $(UNIT_SRCS:tests/unit/%.c=$(BUILD)/unit/%)
FUZZ_SRCS := $(sort $(wildcard tests/fuzz/fuzz_*.c))
FUZZ_BINS := $(FUZZ_SRCS:tests/fuzz/%.c=$(BUILD)/fuzz/%)
C_FILES    = $(shell find src include tests bench -name '*.[ch]')

.PHONY: all run test unit e2e coherence bench-sidecar differential apps fuzz fuzz-build asan tsan lint layers fmt fmt-check tidy bench bench-spikes bench-large bench-disk bench-hit-ratio soak \
        install uninstall image image-test chart-test clean deps deps-test help FORCE
.SUFFIXES:
.DELETE_ON_ERROR:
.SECONDARY:

# An image of the server is made without bench/, and then without the load generator.
all: $(BIN) $(if $(BENCH_SRCS),$(BENCH))  ## build build/tiercel and build/tiercel-bench (the default)

# Rebuild when the compiler, a flag or the list of objects changes.
note = @mkdir -p $(@D); printf '%s\n' '$(subst ','\'',$(1))' | cmp -s - $@ || printf '%s\n' '$(subst ','\'',$(1))' > $@
$(BUILD)/.flags: FORCE
	$(call note,$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) $(LIBS))
$(BUILD)/.objs: FORCE
	$(call note,$(LIB_OBJS))

$(BUILD)/obj/%.o: %.c $(BUILD)/.flags
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

$(ARCHIVE): $(LIB_OBJS) $(BUILD)/.objs
	@rm -f $@
	$(call say,AR,$@)
	$(Q)$(AR) rcs $@ $(LIB_OBJS)

$(BIN): $(MAIN_OBJ) $(LIB_OBJS) $(BUILD)/.objs
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $(MAIN_OBJ) $(LIB_OBJS) $(LIBS)

# The load generator takes nothing from the server but these.
BENCH_BASE := $(BUILD)/obj/src/base/check.o $(BUILD)/obj/src/base/hash.o $(BUILD)/obj/src/base/num.o $(BUILD)/obj/src/base/pace.o $(BUILD)/obj/src/base/clock.o
BENCH_LIBS := $(call pkg_libs,libuv,-luv) $(call pkg_libs,libzstd,-lzstd) -lpthread -lm

$(BENCH): $(BENCH_OBJS) $(BENCH_BASE)
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) $(NO_LTO) -o $@ $^ $(BENCH_LIBS)

$(LINK): bench/link/link.c
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(CC) -std=gnu11 -O2 -Wall -Wextra -o $@ $<

# It drives the tier layer itself, and reads traces as the load generator does.
$(HIT_RATIO): $(HIT_RATIO_OBJS) $(BUILD)/obj/bench/loadgen/trace.o $(ARCHIVE)
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) $(NO_LTO) -o $@ $^ $(LIBS)

# ---- tests -----------------------------------------------------------------

$(BUILD)/unit/%: $(BUILD)/obj/tests/unit/%.o $(ARCHIVE)
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) $(NO_LTO) -o $@ $^ $(CMOCKA) $(LIBS)

$(BUILD)/unit/test_loadgen: $(BUILD)/obj/tests/unit/test_loadgen.o $(filter-out %/main.o,$(BENCH_OBJS)) $(BENCH_BASE)
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) $(NO_LTO) -o $@ $^ $(CMOCKA) $(BENCH_LIBS)

unit: $(UNIT_BINS)  ## build and run the unit tests (one: make unit-<name>)
	@sh tests/unit/run.sh $(UNIT_BINS)

unit-%: $(BUILD)/unit/test_%
	$<

test:  ## install the test tools, then everything CI runs
	@sh deps/install.sh build
	@sh deps/install.sh test
	@bash tests/run.sh

e2e: all  ## end-to-end tests (E2E="tests/e2e/test_x.py -k name" for some)
	@TIERCEL_BIN=$(BIN) bash tests/run.sh only e2e

coherence: $(BIN)  ## two sidecars and faults, judged by the upstream's own history
	@TIERCEL_BIN=$(BIN) bash tests/run.sh only coherence

differential: $(BIN)  ## the same commands here and on redis-server, replies compared
	@TIERCEL_BIN=$(BIN) bash tests/run.sh only differential

apps: $(BIN)  ## Celery, RQ, BullMQ, ioredis, node-redis, redis-py on the server
	@TIERCEL_BIN=$(BIN) bash tests/run.sh only apps

asan:  ## unit and end-to-end tests under AddressSanitizer and UBSan
	@bash tests/run.sh only asan

tsan:  ## unit and end-to-end tests under ThreadSanitizer
	@bash tests/run.sh only tsan

# Fuzz targets have objects of their own: clang, libFuzzer, ASan and UBSan.
FUZZ_CFLAGS := -std=gnu11 -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
FUZZ_CPPFLAGS = $(filter-out -DTIERCEL_JEMALLOC=1,$(BASE_CPPFLAGS)) $(CPPFLAGS)
FUZZ_OBJS   := $(LIB_SRCS:%.c=$(BUILD)/fuzz/obj/%.o)

$(BUILD)/fuzz/obj/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CLANG) $(FUZZ_CFLAGS) -fsanitize=fuzzer-no-link $(LIB_CFLAGS) $(FUZZ_CPPFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/fuzz/libtiercel.a: $(FUZZ_OBJS)
	@rm -f $@
	$(call say,AR,$@)
	$(Q)$(AR) rcs $@ $(FUZZ_OBJS)

$(BUILD)/fuzz/fuzz_%: $(BUILD)/fuzz/obj/tests/fuzz/fuzz_%.o $(BUILD)/fuzz/libtiercel.a
	$(call say,LINK,$@)
	$(Q)$(CLANG) $(FUZZ_CFLAGS) -fsanitize=fuzzer -o $@ $^ $(filter-out -ljemalloc,$(LIBS))

fuzz-build: $(FUZZ_BINS)

fuzz: fuzz-build  ## run every fuzz target for FUZZ_SECONDS
	@sh tests/fuzz/run.sh $(FUZZ_SECONDS) $(BUILD)/fuzz $(FUZZ_BINS)

soak:  ## what takes too long for CI
	@bash tests/run.sh only soak

bench: all  ## beside redis-server and its kind: CPU, memory, latency (ARGS="--rows 'get p16' --slices 5" for a quick look)
	@TIERCEL_BIN=$(BIN) $(PYTHON) bench/bench.py $(ARGS)

bench-spikes: all  ## latency of reads while the table grows, keys expire, are evicted or flushed (ARGS="--scale 0.1")
	@TIERCEL_BIN=$(BIN) $(PYTHON) bench/spikes.py $(ARGS)

bench-large: all  ## latency of reads while a value of a million elements comes and goes (ARGS="--types hash --scale 0.1")
	@TIERCEL_BIN=$(BIN) $(PYTHON) bench/large.py $(ARGS)

bench-disk: all  ## the disk tier beside redis-server (ARGS="--parts a --scale 0.1" for a quick look)
	@TIERCEL_BIN=$(BIN) $(PYTHON) bench/disk.py $(ARGS)

bench-sidecar: all $(LINK)  ## a sidecar beside direct access, over a link with a delay (ARGS="--samples 300 --requests 40000")
	@TIERCEL_BIN=$(BIN) $(PYTHON) bench/sidecar.py $(ARGS)

bench-hit-ratio: $(HIT_RATIO)  ## miss ratios on recorded traces (TRACES=directory)
	@$(HIT_RATIO) $(ARGS) $(TRACES)

# ---- code quality ------------------------------------------------------------

lint: layers fmt-check  ## layers, forbidden functions, format, scripts
	@bash tests/lint/scripts.sh $(PYTHON)

layers:
	@CC="$(CC)" $(PYTHON) tests/lint/check_layers.py

fmt-check:
	@bash tests/lint/format.sh $(CLANG_FORMAT) $(C_FILES)

fmt:  ## format the C sources in place
	$(CLANG_FORMAT) -i $(C_FILES)

tidy:  ## clang-tidy (advice, slow; not part of CI)
	clang-tidy --quiet $(LIB_SRCS) $(wildcard src/main.c) -- -std=gnu11 $(BASE_CPPFLAGS) $(LIB_CFLAGS)

# ---- running and installing --------------------------------------------------

run:  ## install missing packages, build, serve on 127.0.0.1:6379 with ./data
	@sh deps/install.sh build
	@$(MAKE) --no-print-directory -j2 all
	@mkdir -p data
	@exec $(BIN) --bind 127.0.0.1 --port 6379 --dir ./data $(ARGS)

deps:  ## install the packages needed to build
	@sh deps/install.sh build

deps-test:  ## install the packages needed to test
	@sh deps/install.sh test

MAN_PAGES := $(MANDIR)/man1/tiercel.1 $(MANDIR)/man1/tiercel-bench.1 $(MANDIR)/man5/tiercel.conf.5

install: all  ## install into DESTDIR, PREFIX=/usr/local: programs, manual pages, sample configuration, systemd unit
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(SYSCONFDIR)/tiercel $(DESTDIR)$(SYSTEMDDIR) $(sort $(dir $(MAN_PAGES:%=$(DESTDIR)%)))
	install -m 755 $(BIN) $(BENCH) $(DESTDIR)$(BINDIR)
	install -m 644 conf/man/tiercel.1 conf/man/tiercel-bench.1 $(DESTDIR)$(MANDIR)/man1
	$(BIN) --man-page >$(DESTDIR)$(MANDIR)/man5/tiercel.conf.5
	install -m 644 conf/tiercel.conf $(DESTDIR)$(SYSCONFDIR)/tiercel/tiercel.conf.sample
	sed -e 's|@BINDIR@|$(BINDIR)|' -e 's|@SYSCONFDIR@|$(SYSCONFDIR)|' conf/systemd/tiercel.service \
	    >$(DESTDIR)$(SYSTEMDDIR)/tiercel.service
	chmod 644 $(DESTDIR)$(MANDIR)/man5/tiercel.conf.5 $(DESTDIR)$(SYSTEMDDIR)/tiercel.service

uninstall:  ## remove what install put there
	rm -f $(addprefix $(DESTDIR),$(BINDIR)/tiercel $(BINDIR)/tiercel-bench $(MAN_PAGES) \
	    $(SYSCONFDIR)/tiercel/tiercel.conf.sample $(SYSTEMDDIR)/tiercel.service)
	rmdir $(DESTDIR)$(SYSCONFDIR)/tiercel 2>/dev/null || true

deb: all  ## build/tiercel_VERSION_ARCH.deb
	@sh conf/debian/build.sh $(BUILD) $(VERSION)

deb-test:  ## that package in a fresh system: installed, run as its user, purged (root, debootstrap, some minutes)
	@bash tests/packaging/deb.sh

.PHONY: deb deb-test port-test dist
port-test:  ## build, unit tests and some end-to-end tests with another distribution's libraries (SUITE=trixie, noble; root, debootstrap)
	@SUITE=$(or $(SUITE),trixie) bash tests/packaging/port.sh

dist:  ## build/tiercel-VERSION.tar.gz: the sources of the last commit
	@mkdir -p $(BUILD)
	git archive --format=tar.gz --prefix=tiercel-$(VERSION)/ -o $(BUILD)/tiercel-$(VERSION).tar.gz HEAD
	@echo $(BUILD)/tiercel-$(VERSION).tar.gz

image:  ## container image tiercel:VERSION (docker, or DOCKER=podman)
	$(DOCKER) build --build-arg VERSION=$(VERSION) -f docker/Dockerfile -t tiercel:$(VERSION) -t tiercel .

image-test:  ## the Dockerfile's steps in fresh systems, and the result run as its user (root, debootstrap, some minutes)
	@$(PYTHON) tests/packaging/image.py $(ARGS)

chart-test:  ## the Helm chart rendered, its objects and the manifests against Kubernetes' schemas (Go, sprig, npm; ARGS=--update)
	@$(PYTHON) tests/packaging/chart.py $(ARGS)

clean:  ## remove build/
	rm -rf $(BUILD)

help:  ## this list
	@sed -n 's/^\([a-z][a-z0-9-]*\):.*##  *\(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-15s %s\n", $$1, $$2 }'

FORCE:

-include $(LIB_OBJS:.o=.d) $(MAIN_OBJ:.o=.d) $(BENCH_OBJS:.o=.d) $(HIT_RATIO_OBJS:.o=.d) $(UNIT_SRCS:%.c=$(BUILD)/obj/%.d) $(FUZZ_OBJS:.o=.d) \
         $(FUZZ_SRCS:%.c=$(BUILD)/fuzz/obj/%.d)
