"""Checks what the compiler does not: layers, libraries, forbidden functions, headers.

usage: check_layers.py [--no-compile] [root]

Standard library only. Errors make it fail; warnings do not.
"""
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

# Layers from the bottom up. A file includes headers of its own module and of lower
# layers; modules that share a layer do not include one another, except in PEERS.
LAYERS = [
    ["base"],
    ["loadgen"],  # bench/loadgen, a program of its own: it takes nothing from the server but base
    ["stats", "log", "conf"],
    ["resp", "object", "codec"],
    ["mem", "disk", "upstream"],
    ["tier"],
    ["link"],  # bench/link, a program of its own: it takes nothing from the server
    ["hit_ratio"],  # bench/hit_ratio, a program of its own: it drives tier, and reads traces as loadgen does
    ["cmd"],
    ["net"],
    ["main"],
]
RANK = {module: rank for rank, modules in enumerate(LAYERS) for module in modules}

# Layers whose modules may include one another: the design separates only the tiers.
PEERS = {RANK["conf"], RANK["resp"]}

# Every header of include/tiercel/, and the module whose contract it is.
HEADER_LAYER = {
    "base": "status check slice buf chain list clock hash mbox alloc rcbuf table geohash glob num worker version machine digest pace",
    "conf": "conf rules",
    "log": "log",
    "stats": "stats",
    "resp": "resp",
    "object": "object listpack dict rdb hll type_list type_set type_zset type_hash type_stream",
    "codec": "codec",
    "mem": "mem",
    "disk": "disk",
    "upstream": "upstream",
    "tier": "tier inspect warm",
    "cmd": "cmd command keyspace session inbox pubsub tracking acl",
    "net": "net http loop figures health",
}
HEADER_MODULE = {name + ".h": module for module, names in HEADER_LAYER.items() for name in names.split()}

# Third-party headers: pattern of the header, pattern of the files that may include it, for the message.
LIBRARIES = [
    (r"(uv\.h|uv/.*)", r"src/(net/.*|base/mbox\.c|upstream/[^/]*(uv|attach)[^/]*\.[ch])|bench/loadgen/.*|bench/hit_ratio/.*",
     "net, base/mbox.c, upstream's attachment (*uv*, *attach*) and bench"),
    (r"hiredis(/.*|\.h|_ssl\.h)|async\.h", r"src/upstream/.*", "upstream"),
    (r"lmdb\.h", r"src/disk/.*", "disk"),
    (r"z(std|dict|std_errors)\.h", r"src/codec/.*|bench/loadgen/trace\.c", "codec and bench/loadgen/trace.c"),
    (r"lzf\.h", r"src/object/rdb\.c", "object/rdb.c"),
    (r"xxh(ash|3)\.h", r"src/base/hash\.c", "base/hash.c"),
    (r"microhttpd\.h", r"src/net/http[^/]*\.c", "net/http*.c"),
    (r"jemalloc/.*", r"src/base/alloc\.c", "base/alloc.c"),
    (r"openssl/.*", r"src/(net/tls[^/]*\.[ch]|base/digest\.c)", "net/tls and base/digest.c"),
    (r"(lua|lualib|lauxlib|luaconf|lua-cjson|lua-bitop)\.h|luajit.*", r"src/cmd/script[^/]*\.[ch]", "cmd/script"),
    (r"systemd/.*", r"$^", "no module: sd_notify is written by hand"),
]
# Private headers beside a module's one: what includes a library that the rest of the module must not see, or is long and
# only a few of its files' business.
MORE_HEADERS = {"src/cmd/script_priv.h", "src/cmd/acl_priv.h", "src/cmd/function_priv.h", "src/cmd/tracking_priv.h"}
# Headers that may be included by anybody: the C library, the kernel, the compiler.
SYSTEM = re.compile(
    r"^(assert|ctype|errno|fcntl|fenv|float|getopt|glob|grp|inttypes|iso646|libgen|limits|locale|malloc|math|netdb|poll"
    r"|pthread|pwd|sched|semaphore|setjmp|signal|stdarg|stdatomic|stdbool|stddef|stdint|stdio|stdlib|stdalign"
    r"|stdnoreturn|string|strings|syslog|termios|time|unistd|wchar|execinfo|dirent|ucontext|utime|cpuid|fnmatch|regex"
    r"|immintrin|emmintrin|nmmintrin|x86intrin|arm_neon|zlib"
    r"|(sys|net|netinet|arpa|linux|asm|bits|mach|sanitizer)/[A-Za-z0-9_/]+)\.h$")

FORBIDDEN = {
    "strcpy": "memcpy with a known length",
    "stpcpy": "memcpy with a known length",
    "strcat": "buf_append",
    "strncpy": "memcpy with a known length",
    "strncat": "buf_append",
    "sprintf": "snprintf",
    "vsprintf": "vsnprintf",
    "gets": "fgets",
    "scanf": "num_parse_*",
    "sscanf": "num_parse_*",
    "fscanf": "num_parse_*",
    "atoi": "num_parse_*, which reports errors",
    "atol": "num_parse_*, which reports errors",
    "atoll": "num_parse_*, which reports errors",
    "atof": "num_parse_*, which reports errors",
    "strtok": "slice functions",
    "rand": "hash_random or the worker's generator",
    "srand": "hash_random or the worker's generator",
    "random": "hash_random or the worker's generator",
    "srandom": "hash_random or the worker's generator",
    "alloca": "a buffer with a limit",
    "tmpnam": "mkstemp",
    "tempnam": "mkstemp",
    "mktemp": "mkstemp",
    "localtime": "localtime_r",
    "gmtime": "gmtime_r",
    "ctime": "strftime",
    "asctime": "strftime",
    "system": "no shell",
    "popen": "no shell",
    "usleep": "no sleeping: a timer",
}
FORBIDDEN_RE = re.compile(r"(?<![A-Za-z0-9_>.])(%s)\s*\(" % "|".join(FORBIDDEN))
INCLUDE_RE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.M)
MACHINE_PATH = re.compile(r'(?<![A-Za-z0-9_.-])/(home|root|work|Users)/[A-Za-z0-9_.-]+|\.\./shared\b')
TODO = re.compile(r"\b(TODO|FIXME|XXX)\b")
MAX_LINES = 900
TEXT_SUFFIX = (".c", ".h", ".def", ".py", ".sh", ".md", ".txt", ".conf", ".yml", ".yaml", ".json", ".service", ".test")
SKIP_DIRS = {".git", "build", "data", "__pycache__", ".pytest_cache"}

errors = []
warnings = []


def error(path, line, text):
    errors.append("%s:%d: error: %s" % (path, line, text))


def warn(path, line, text):
    warnings.append("%s:%d: warning: %s" % (path, line, text))


def strip(text):
    """Blanks comments and the contents of literals; keeps line numbers and #include lines."""
    token = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)

    def blank(match):
        found = match.group(0)
        if found[0] == "/":
            return re.sub(r"[^\n]", " ", found)
        return found[0] + " " * (len(found) - 2) + found[-1]

    lines = text.split("\n")
    keep = {i: line for i, line in enumerate(lines) if re.match(r"[ \t]*#[ \t]*include", line)}
    out = token.sub(blank, text).split("\n")
    for i, line in keep.items():
        if out[i].strip():  # an include inside a comment stays blank
            out[i] = line
    return "\n".join(out)


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def module_of(path):
    """The module of src/..., include/tiercel/... or bench/..., or None."""
    parts = path.split("/")
    if parts[0] == "bench" and len(parts) == 3:
        return parts[1]
    if path == "src/main.c":
        return "main"
    if parts[0] == "src" and len(parts) >= 3:
        return parts[1]
    if parts[:2] == ["include", "tiercel"]:
        return HEADER_MODULE.get(parts[-1])
    return None


def may_include(module, other):
    if module == other:
        return True
    if RANK[module] == RANK[other]:
        return RANK[module] in PEERS
    return RANK[other] < RANK[module]


def check_include(root, path, module, header, line, quoted):
    for pattern, users, who in LIBRARIES:
        if re.match("^(%s)$" % pattern, header):
            if not re.match("^(%s)$" % users, path):
                error(path, line, "<%s> is for %s only" % (header, who))
            return
    if header.startswith("tiercel/"):
        name = header[len("tiercel/"):]
        other = HEADER_MODULE.get(name)
        if other is None:
            if not os.path.exists(os.path.join(root, "include", header)):
                error(path, line, "no such header: include/%s" % header)
            return  # an unmapped header is reported once, where it lies
        if not may_include(module, other):
            error(path, line, "%s (layer %s) may not include %s (layer %s): includes point downwards only"
                  % (path, module, header, other))
        return
    if header.endswith((".def", ".inc")) and (
            os.path.exists(os.path.join(root, "tbl", os.path.basename(header)))):
        return
    if quoted:
        near = os.path.normpath(os.path.join(os.path.dirname(path), header)).replace(os.sep, "/")
        from_src = "src/" + header
        target = near if os.path.exists(os.path.join(root, near)) else from_src
        other = module_of(target)
        if not os.path.exists(os.path.join(root, target)):
            error(path, line, 'no such header: "%s"' % header)
        elif other != module and (module, target) != ("hit_ratio", "bench/loadgen/trace.h"):
            error(path, line, '"%s" is private to module %s' % (header, other))
        return
    if not SYSTEM.match(header):
        error(path, line, "<%s> is no header of the C library or the system; a new library is entered in LIBRARIES"
              % header)


def check_source(root, path):
    with open(os.path.join(root, path), encoding="utf-8") as f:
        text = f.read()
    code = strip(text)
    module = module_of(path)
    if module is None:
        if path.startswith("include/"):
            error(path, 1, "not mapped: enter it in HEADER_LAYER of tests/lint/check_layers.py")
        else:
            error(path, 1, "outside of any module")
        return
    if module not in RANK:
        error(path, 1, "module %s is not in LAYERS of tests/lint/check_layers.py" % module)
        return
    for match in INCLUDE_RE.finditer(code):
        check_include(root, path, module, match.group(2), line_of(code, match.start()), match.group(1) == '"')
    for match in FORBIDDEN_RE.finditer(code):
        error(path, line_of(code, match.start(1)), "%s() is forbidden: use %s"
              % (match.group(1), FORBIDDEN[match.group(1)]))
    for match in TODO.finditer(text):
        error(path, line_of(text, match.start()), "%s: open an issue instead" % match.group(1))
    lines = text.count("\n")
    if lines > MAX_LINES:
        warn(path, 1, "%d lines: wants to be two files" % lines)
    if path.startswith("src/") and path.endswith(".h") and os.path.basename(path) != module + "_priv.h" \
            and path not in MORE_HEADERS:
        error(path, 1, "a module has one private header: src/%s/%s_priv.h" % (module, module))
    if path.startswith("include/"):
        guard = re.search(r"^[ \t]*#[ \t]*ifndef[ \t]+(\w+)\s+#[ \t]*define[ \t]+(\w+)", code, re.M)
        want = "TIERCEL_%s_H" % os.path.basename(path)[:-2].upper().replace("-", "_")
        if not re.search(r"^[ \t]*#[ \t]*pragma[ \t]+once", code, re.M) and (
                not guard or guard.group(1) != guard.group(2) or guard.group(1) != want):
            error(path, 1, "include guard %s is missing" % want)


def check_machine_paths(root, path):
    try:
        with open(os.path.join(root, path), encoding="utf-8") as f:
            text = f.read()
    except UnicodeDecodeError:
        return
    if path == "tests/lint/check_layers.py":
        return
    for match in MACHINE_PATH.finditer(text):
        error(path, line_of(text, match.start()), "path of one machine: %s" % match.group(0))


def compile_alone(root, header):
    cc = (os.environ.get("CC") or "cc").split()
    with tempfile.TemporaryDirectory() as tmp:
        probe = os.path.join(tmp, "probe.c")
        with open(probe, "w", encoding="utf-8") as f:
            f.write('#include "%s"\n' % header[len("include/"):])
        run = subprocess.run(
            cc + ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-fsyntax-only", "-Iinclude", "-Itbl", probe],
            cwd=root, capture_output=True, text=True)
    return run.returncode, run.stderr


def main():
    args = [a for a in sys.argv[1:] if a != "--no-compile"]
    root = os.path.abspath(args[0] if args else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))

    sources = []
    for top in ("src", "include", "bench"):
        for folder, dirs, files in os.walk(os.path.join(root, top)):
            dirs[:] = sorted(d for d in dirs if d not in SKIP_DIRS)
            for name in sorted(files):
                if name.endswith((".c", ".h")):
                    sources.append(os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/"))
    for path in sources:
        check_source(root, path)

    for folder, dirs, files in os.walk(root):
        dirs[:] = sorted(d for d in dirs if d not in SKIP_DIRS)
        for name in sorted(files):
            if name.endswith(TEXT_SUFFIX) or "." not in name[1:]:
                check_machine_paths(root, os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/"))

    headers = [p for p in sources if p.startswith("include/tiercel/")]
    if "--no-compile" not in sys.argv:
        with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
            for path, (code, text) in zip(headers, pool.map(lambda h: compile_alone(root, h), headers)):
                if code != 0:
                    error(path, 1, "does not compile alone:\n" + text.rstrip())

    for text in warnings + errors:
        print(text)
    print("layers: %d files, %d errors, %d warnings" % (len(sources), len(errors), len(warnings)))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
