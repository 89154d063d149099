"""The checker finds what it should: python3 tests/lint/test_check_layers.py"""
import os
import subprocess
import sys
import tempfile
import unittest

CHECKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "check_layers.py")
HEADER = "#ifndef TIERCEL_%s_H\n#define TIERCEL_%s_H\n%s#endif\n"


def header(name, body=""):
    return HEADER % (name.upper(), name.upper(), body)


class CheckLayers(unittest.TestCase):
    def check(self, files):
        with tempfile.TemporaryDirectory() as root:
            for path, text in files.items():
                full = os.path.join(root, path)
                os.makedirs(os.path.dirname(full), exist_ok=True)
                with open(full, "w", encoding="utf-8") as f:
                    f.write(text)
            run = subprocess.run([sys.executable, CHECKER, root], capture_output=True, text=True)
            return run.returncode, run.stdout + run.stderr

    def fails(self, files, text):
        code, out = self.check(files)
        self.assertIn(text, out)
        self.assertEqual(code, 1, out)

    def passes(self, files):
        code, out = self.check(files)
        self.assertEqual(code, 0, out)

    def test_downwards(self):
        self.passes({"include/tiercel/buf.h": header("buf"),
                     "include/tiercel/mem.h": header("mem", '#include "tiercel/buf.h"\n'),
                     "src/mem/mem_priv.h": "",
                     "src/mem/mem.c": '#include <string.h>\n#include "tiercel/mem.h"\n#include "mem_priv.h"\n'})

    def test_upwards(self):
        self.fails({"include/tiercel/mem.h": header("mem"),
                    "src/base/buf.c": '#include "tiercel/mem.h"\n'}, "downwards")

    def test_between_tiers(self):
        self.fails({"include/tiercel/mem.h": header("mem"),
                    "src/disk/disk.c": "#include <tiercel/mem.h>\n"}, "downwards")

    def test_private_header_of_another(self):
        self.fails({"src/mem/mem_priv.h": "", "src/tier/tier.c": '#include "mem/mem_priv.h"\n'}, "private")

    def test_second_private_header(self):
        self.fails({"src/mem/table.h": ""}, "one private header")

    def test_library(self):
        self.passes({"src/disk/disk.c": "#include <lmdb.h>\n"})
        self.fails({"src/tier/tier.c": "#include <lmdb.h>\n"}, "for disk only")
        self.fails({"src/tier/tier.c": "#include <curl/curl.h>\n"}, "no header of the C library")

    def test_forbidden(self):
        self.fails({"src/base/a.c": "int f(const char *s)\n{\n    return atoi(s);\n}\n"}, "a.c:3: error: atoi()")

    def test_forbidden_only_in_code(self):
        self.passes({"src/base/a.c": '/* atoi(s) */ char *s = "atoi(s)"; int x = hash_rand(1) + o->rand(2);\n'})

    def test_commented_include(self):
        self.passes({"src/base/a.c": '/*\n#include <lmdb.h>\n*/\n'})

    def test_unmapped_header(self):
        self.fails({"include/tiercel/new.h": header("new")}, "not mapped")

    def test_guard(self):
        self.fails({"include/tiercel/buf.h": "int x;\n"}, "include guard TIERCEL_BUF_H")

    def test_compiles_alone(self):
        self.fails({"include/tiercel/buf.h": header("buf", "size_t f(void);\n")}, "does not compile alone")

    def test_todo(self):
        self.fails({"src/base/a.c": "/* TO" + "DO */\n"}, "open an issue")

    def test_machine_path(self):
        self.fails({"conf/a.conf": "dir /ho" + "me/somebody/data\n"}, "path of one machine")


if __name__ == "__main__":
    unittest.main()
