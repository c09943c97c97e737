#!/usr/bin/env python3
"""Fails on circles of imports between the files of src/, and on imports of a higher or a neighbouring room.

    scripts/check_imports.py [--src FOLDER] [--edges] [--self-test]

    --src FOLDER   the sources to read, src otherwise
    --edges        also list every import, as FILE -> FILE
    --self-test    test this script on small trees with known circles

- An import is a `use` or an inline path (`crate::a::b`, `super::c`, `child::d`) outside of tests.
- It is followed through re-exports to the file that defines the item: a child that uses `super::Name`
  depends on the file of `Name`, and on the parent only if `Name` is defined there.
- A `mod` line and a `pub use` do not count. A `pub use` counts if its file uses the name as well.
- Only paths are read: a call of a method needs no import, and does not count as one.
"""

import argparse
import os
import re
import sys
import tempfile
import unittest
from collections import deque
from pathlib import Path

# The rooms, lowest first. The rooms of one line share a level: a room may import itself and the lines
# above, but not its neighbours. A room is a file or a folder, named without `.rs`, or several of them
# joined by a plus.
ROOMS = """
shown regular_file
flow skipped
error
exit_code
config
plan
items+report+progress
sniff crash
store
source decode batch engine
limits commit
sink
pipeline
checked
scorer
job
beam
bench doctor extract docs
lib
cli
main
"""

TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|/\*)
    |(?P<raw>\b(?:br|cr|r)(?P<hashes>\#*)")
    |(?P<string>\b[bc]?"(?:[^"\\]|\\.)*"|"(?:[^"\\]|\\.)*")
    |(?P<char>b?'(?:[^'\\\n]|\\[^\n]|\\u\{[0-9a-fA-F_]+\}|\\x[0-9a-fA-F]{2})')
    |(?P<lifetime>'[A-Za-z_]\w*)
    |(?P<word>(?:r\#)?[A-Za-z_]\w*)
    |(?P<path>::)
    |(?P<number>\d[\w.]*?(?=\W|$))
    |(?P<sign>[^\s\w])""",
    re.VERBOSE | re.DOTALL,
)

# Keywords that declare a name at the top of a module.
DECLARES = {"fn", "struct", "enum", "union", "trait", "type", "const", "static"}
OPENS, CLOSES = "([{", ")]}"


def tokens(text):
    """(word or sign, line) of Rust source, without comments, strings and lifetimes."""
    found, at, line = [], 0, 1
    while match := TOKEN.search(text, at):
        line += text.count("\n", at, match.start())
        end = match.end()
        if match["comment"] == "/*":
            depth = 1
            while depth and (mark := re.compile(r"/\*|\*/").search(text, end)):
                depth += 1 if mark[0] == "/*" else -1
                end = mark.end()
            end = end if not depth else len(text)
        elif match["raw"]:
            close = text.find('"' + match["hashes"], end)
            end = close + 1 + len(match["hashes"]) if close >= 0 else len(text)
            found.append(('""', line))
        elif match["string"] or match["char"] or match["number"]:
            found.append((match[0] if match["string"] else '""', line))
        elif not match["comment"] and not match["lifetime"]:
            found.append((match[0].removeprefix("r#"), line))
        line += text.count("\n", match.start(), end)
        at = end
    return found


def closing(found, at):
    """Index of the bracket that closes the one at `at`."""
    depth = 0
    for index in range(at, len(found)):
        word = found[index][0]
        depth += (word in OPENS) - (word in CLOSES) if len(word) == 1 else 0
        if depth == 0:
            return index
    return len(found) - 1


def item_end(found, at):
    """Index of the last token of the item that begins at `at`."""
    while at < len(found) and found[at][0] == "#":
        at = closing(found, at + 1) + 1
    is_value = False
    while at < len(found):
        word = found[at][0]
        if word == ";":
            return at
        is_value |= word in ("=", "use")
        if word in ("(", "[", "{"):
            at = closing(found, at)
            if word == "{" and not is_value:
                return at
        at += 1
    return len(found) - 1


def is_for_tests(attribute):
    words = [word for word, _ in attribute]
    return words[:2] == ["cfg", "("] and "test" in words and "not" not in words or words[:1] == ["test"]


def without_tests(found):
    """The tokens without items for tests, and without attributes; `#[path]` is kept as an item."""
    kept, at = [], 0
    while at < len(found):
        if found[at][0] == "#" and at + 1 < len(found):
            inner = found[at + 1][0] == "!"
            begin = at + 2 if inner else at + 1
            if begin < len(found) and found[begin][0] == "[":
                end = closing(found, begin)
                attribute = found[begin + 1 : end]
                if not inner and is_for_tests(attribute):
                    at = item_end(found, at) + 1
                    continue
                if attribute and attribute[0][0] == "path":
                    kept.append(("#path=" + attribute[-1][0].strip('"'), found[at][1]))
                at = end + 1
                continue
        kept.append(found[at])
        at += 1
    return kept


class Module:
    """A module: its file, what it declares, and its paths with their lines."""

    def __init__(self, file, parent, children_in):
        self.file, self.parent, self.children_in = file, parent, children_in
        self.modules = {}
        self.declared = set()
        self.uses = {}  # name → path
        self.globs = []
        self.signposts = []  # (name, path, line) of each `pub use`
        self.paths = []  # (path, line) of each import
        self.words = set()  # of the code, without its `use` items

    def root(self):
        module = self
        while module.parent:
            module = module.parent
        return module


def use_tree(found, at, prefix):
    """(path, name or None for a glob, line) of each leaf of a use tree, and the index behind it."""
    path, leaves = list(prefix), []
    while True:
        word, line = found[at]
        if word == "{":
            at += 1
            while found[at][0] != "}":
                inner, at = use_tree(found, at, path)
                leaves += inner
                at += found[at][0] == ","
            return leaves, at + 1
        if word == "*":
            return [(path, None, line)], at + 1
        if word != "::":
            path = path + [word] if word != "self" or not path else path
            if found[at + 1][0] != "::":
                name, at = path[-1], at + 1
                if found[at][0] == "as":
                    name, at = found[at + 1][0], at + 2
                return [(path, name, line)], at
        at += 1


def read(module, found, tree):
    """Fill a module from its tokens; `tree` reads the files of its children."""
    at, depth, is_public, path_attribute = 0, 0, False, None
    while at < len(found):
        word, line = found[at]
        following = found[at + 1][0] if at + 1 < len(found) else ""
        if word.startswith("#path="):
            path_attribute = word[6:]
        elif word == "pub":
            is_public = True
            if following == "(" and found[at + 2][0] in ("crate", "super", "in", "self"):
                at = closing(found, at + 1)
            at += 1
            continue
        elif word == "mod" and depth == 0 and re.match(r"\w", following):
            if found[at + 2][0] == "{":
                end = closing(found, at + 2)
                child = Module(module.file, module, module.children_in / following)
                module.modules[following] = child
                read(child, found[at + 3 : end], tree)
                at = end
            else:
                tree.file(module, following, path_attribute)
                at += 2
            path_attribute = None
        elif word == "use":
            leaves, at = use_tree(found, at + 1, [])
            for path, name, line in leaves:
                if name is None:
                    module.globs.append(path)
                    module.paths.append((path, line))
                    continue
                if name != "_":
                    module.uses.setdefault(name, path)
                if is_public:
                    module.signposts.append((name, path, line))
                else:
                    module.paths.append((path, line))
        elif word == "macro_rules":
            module.declared.add(found[at + 2][0])
            at += 2
        elif word in DECLARES and depth == 0 and re.match(r"\w", following):
            names = [name for name, _ in found[at + 1 : at + 3] if name not in ("mut", "fn", "unsafe", "_")]
            if names:
                module.declared.add(names[0])
        elif re.match(r"[A-Za-z_]", word):
            module.words.add(word)
            if following == "::" and (at == 0 or found[at - 1][0] != "::"):
                path, end = [word], at + 1
                while found[end][0] == "::" and re.match(r"[A-Za-z_]", found[end + 1][0]):
                    path.append(found[end + 1][0])
                    end += 2
                    if end >= len(found):
                        break
                module.paths.append((path, line))
        elif word in OPENS:
            depth += 1
        elif word in CLOSES:
            depth -= 1
        is_public = False
        at += 1


class Tree:
    """The modules of a library and of the binary beside it."""

    def __init__(self, src, crate_name):
        self.src, self.modules = Path(src), []
        self.crate_name = crate_name
        self.crates = {}
        for name in ("lib.rs", "main.rs"):
            if (self.src / name).is_file():
                self.crates[name] = Module(self.src / name, None, self.src)
                self._read(self.crates[name])

    def _read(self, module):
        read(module, without_tests(tokens(module.file.read_text())), self)
        self._keep(module)

    def _keep(self, module):
        self.modules.append(module)
        for child in module.modules.values():
            if child not in self.modules:
                self._keep(child)

    def file(self, parent, name, path_attribute):
        """Read the file of `mod name;`."""
        if path_attribute:
            candidates = [parent.file.parent / path_attribute]
        else:
            candidates = [parent.children_in / f"{name}.rs", parent.children_in / name / "mod.rs"]
        file = next((file for file in candidates if file.is_file()), None)
        if file is None:
            sys.exit(f"check_imports: {parent.file} declares mod {name}, which is in none of {candidates}")
        child = Module(file, parent, parent.children_in / name)
        parent.modules[name] = child
        self._read(child)

    def resolve(self, module, path, seen=()):
        """The file that defines the item of a path, or None if the item belongs to another crate."""
        first, rest = path[0], path[1:]
        if first == "crate":
            return self._descend(module.root(), rest, seen)
        if first == "self":
            return self._descend(module, rest, seen)
        if first == "super":
            return self._descend(module.parent, rest, seen) if module.parent else None
        if first == self.crate_name and module.root() is self.crates.get("main.rs"):
            return self._descend(self.crates["lib.rs"], rest, seen)
        if self._has(module, first):
            return self._descend(module, path, seen)
        return None

    def _has(self, module, name):
        return name in module.modules or name in module.uses or name in module.declared

    def _descend(self, module, path, seen):
        if not path:
            return module.file
        first, rest = path[0], path[1:]
        if first == "super":
            return self._descend(module.parent, rest, seen) if module.parent else None
        if first in module.modules:
            return self._descend(module.modules[first], rest, seen)
        if first in module.declared:
            return module.file
        if (module, first) in seen:
            return None
        seen = (*seen, (module, first))
        if first in module.uses and module.uses[first] != [first]:
            return self.resolve(module, module.uses[first] + rest, seen)
        for glob in module.globs:
            if found := self._through_glob(module, glob, first, rest, seen):
                return found
        return module.file if first not in module.uses else None

    def _through_glob(self, module, glob, first, rest, seen):
        target = self._module(module, glob)
        if target and self._has(target, first) and (target, first) not in seen:
            return self._descend(target, [first, *rest], seen)
        return None

    def _module(self, module, path):
        """The module that a path names, if it is one of ours."""
        steps = {"crate": module.root(), "self": module, "super": module.parent}
        at = steps.get(path[0], module.modules.get(path[0]))
        for step in path[1:]:
            at = at and (at.parent if step == "super" else at.modules.get(step))
        return at

    def imports(self):
        """{file: {imported file: [line, …]}}, each file as a path below the sources."""
        graph = {}
        for module in self.modules:
            file = self._name(module.file)
            edges = graph.setdefault(file, {})
            signposts = [(path, line) for name, path, line in module.signposts if name in module.words]
            for path, line in module.paths + signposts:
                target = self.resolve(module, path)
                if path[0] in module.uses and len(path) > 1 and target == self.resolve(module, path[:1]):
                    continue  # counted at its `use`
                if target and (name := self._name(target)) != file:
                    edges.setdefault(name, []).append(line)
        for edges in graph.values():
            for name, lines in edges.items():
                edges[name] = sorted(set(lines))
        return graph

    def _name(self, file):
        return file.relative_to(self.src).as_posix()


def shortest(graph, start, goal):
    """Files on a shortest way from `start` to `goal`, both included; None if there is none."""
    before, queue = {start: None}, deque([start])
    while queue:
        file = queue.popleft()
        if file == goal:
            way = [file]
            while before[way[-1]] is not None:
                way.append(before[way[-1]])
            return way[::-1]
        for following in sorted(graph.get(file, ())):
            if following not in before:
                before[following] = file
                queue.append(following)
    return None


def circles(graph):
    """For each import that lies on a circle a shortest one, each circle once, the shortest first."""
    found = set()
    for file, edges in graph.items():
        for target in edges:
            if way := shortest(graph, target, file):
                first = way.index(min(way))
                found.add(tuple(way[first:] + way[:first]))
    return sorted(found, key=lambda circle: (len(circle), circle))


def top(file):
    """The file or folder at the top of the sources that a file belongs to, without `.rs`."""
    return file.split("/")[0].removesuffix(".rs")


def upward(graph, rooms):
    """(file, line, imported file, reason) of each import that the order of rooms forbids."""
    rooms_by_line = [line.split() for line in rooms.split("\n")]
    room = {name: room for line in rooms_by_line for room in line for name in room.split("+")}
    level = {room: number for number, line in enumerate(rooms_by_line) for room in line}
    found = []
    for file, edges in sorted(graph.items()):
        if top(file) not in room:
            found.append((file, 1, file, "is in no room of the table"))
            continue
        own = room[top(file)]
        for target, lines in sorted(edges.items()):
            other = room.get(top(target), own)
            if level[other] > level[own]:
                found.append((file, lines[0], target, "is in a higher room"))
            elif other != own and level[other] == level[own]:
                found.append((file, lines[0], target, "is in a neighbouring room"))
    return found


def check(src, rooms, list_edges=False):
    graph = Tree(src, "sluice").imports()
    if list_edges:
        for file, edges in sorted(graph.items()):
            for target, lines in sorted(edges.items()):
                print(f"{src}/{file}:{lines[0]} -> {target}")
    bad = circles(graph)
    for circle in bad:
        print(f"circle of {len(circle)} files:")
        for file, target in zip(circle, circle[1:] + circle[:1]):
            lines = ", ".join(map(str, graph[file][target]))
            print(f"    {src}/{file}:{lines} imports {target}")
    wrong = upward(graph, rooms)
    for file, line, target, reason in wrong:
        print(f"{src}/{file}:{line} imports {target}, which {reason}")
    print(f"{len(graph)} files, {len(bad)} circles, {len(wrong)} imports against the order of rooms")
    return not bad and not wrong


# --- Self-test ---------------------------------------------------------------------------------


class OfSmallTrees(unittest.TestCase):
    """Each test writes a tree of files and looks at its imports."""

    def graph(self, **files):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                path = Path(folder, name.replace("__", "/") + ".rs")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            graph = Tree(folder, "sluice").imports()
        return {file: dict(edges) for file, edges in graph.items()}

    def test_two_files_that_use_each_other_are_a_circle(self):
        graph = self.graph(
            lib="mod a; mod b;",
            a="use crate::b::B;\npub struct A;",
            b="pub struct B;\nfn f(_: crate::a::A) {}",
        )
        self.assertEqual(graph["a.rs"], {"b.rs": [1]})
        self.assertEqual(graph["b.rs"], {"a.rs": [2]})
        self.assertEqual(circles(graph), [("a.rs", "b.rs")])

    def test_a_circle_of_three_is_found_and_a_chain_is_none(self):
        chain = {"lib": "mod a; mod b; mod c;", "a": "use crate::b::B;", "b": "use crate::c::C; pub struct B;"}
        self.assertEqual(circles(self.graph(**chain, c="pub struct C;")), [])
        ring = self.graph(**chain, c="pub struct C; fn f() { crate::a::f() }")
        self.assertEqual(circles(ring), [("a.rs", "b.rs", "c.rs")])

    def test_a_reexport_leads_to_the_file_that_defines_the_item(self):
        graph = self.graph(
            lib="mod room;",
            room__mod="mod one; mod two; pub use one::One; pub use two::Two as Second;",
            room__one="use super::Second; pub struct One;",
            room__two="pub struct Two;",
        )
        self.assertEqual(graph["room/one.rs"], {"room/two.rs": [1]})
        self.assertEqual(graph["room/mod.rs"], {})

    def test_a_child_depends_on_a_parent_that_defines_what_it_uses(self):
        graph = self.graph(
            lib="mod room;",
            room__mod="mod one;\npub use one::One;\npub struct Shared;\nfn f() -> One { One }",
            room__one="use super::Shared; pub struct One;",
        )
        self.assertEqual(circles(graph), [("room/mod.rs", "room/one.rs")])

    def test_nested_braces_and_renames_are_read(self):
        graph = self.graph(
            lib="mod a; mod b; mod c;",
            a="use crate::{b::{self, B as Other}, c::*};",
            b="pub struct B;",
            c="pub struct C;",
        )
        self.assertEqual(graph["a.rs"], {"b.rs": [1], "c.rs": [1]})

    def test_a_path_through_an_imported_module_counts(self):
        graph = self.graph(
            lib="mod a; mod b;",
            a="use crate::b;\nfn f() { b::inner::g() }",
            b__mod="pub mod inner;",
            b__inner="pub fn g() {}",
        )
        self.assertEqual(graph["a.rs"], {"b/mod.rs": [1], "b/inner.rs": [2]})

    def test_tests_comments_and_strings_do_not_count(self):
        graph = self.graph(
            lib="mod a; mod b;",
            a='''// use crate::b::B;
            /* crate::b::B /* nested */ crate::b::B */
            const TEXT: &str = "crate::b::B";
            const RAW: &str = r#"crate::b::"B"#;
            fn life<'a>(_: &'a str, _: char) { life("", 'x') }
            #[cfg(test)]
            mod tests { use crate::b::B; }
            #[cfg(test)]
            use crate::b::B;
            #[cfg(all(test, unix))]
            fn only_here() { crate::b::B; }''',
            b="pub struct B;",
        )
        self.assertEqual(graph["a.rs"], {})

    def test_an_inline_module_belongs_to_its_file(self):
        graph = self.graph(
            lib="mod a; mod b;",
            a="mod inner { use super::super::b::B; pub fn f() {} }",
            b="pub struct B; fn f() { crate::a::inner::f() }",
        )
        self.assertEqual(circles(graph), [("a.rs", "b.rs")])

    def test_the_binary_reaches_the_library_by_its_name(self):
        graph = self.graph(lib="pub mod a;", a="pub struct A;", main="mod cli;", cli="use sluice::a::A;")
        self.assertEqual(graph["cli.rs"], {"a.rs": [1]})

    def test_an_upward_import_and_a_neighbours_are_refused(self):
        graph = self.graph(
            lib="mod low; mod high; mod beside;",
            low="use crate::high::H;",
            high="use crate::beside::B; pub struct H;",
            beside="pub struct B;",
        )
        told = upward(graph, "low\nhigh beside\nlib")
        self.assertEqual([(file, target) for file, _, target, _ in told], [("high.rs", "beside.rs"), ("low.rs", "high.rs")])

    def test_files_of_one_room_import_each_other(self):
        graph = {"low.rs": {"beside.rs": [1]}, "beside.rs": {}}
        self.assertEqual(upward(graph, "low+beside"), [])
        self.assertEqual(len(upward(graph, "low beside")), 1)

    def test_a_file_in_no_room_is_refused(self):
        told = upward({"lost.rs": {}}, "low\nhigh")
        self.assertEqual(told, [("lost.rs", 1, "lost.rs", "is in no room of the table")])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--src", default="src")
    parser.add_argument("--edges", action="store_true")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        suite = unittest.defaultTestLoader.loadTestsFromTestCase(OfSmallTrees)
        sys.exit(not unittest.TextTestRunner(verbosity=0).run(suite).wasSuccessful())
    sys.exit(not check(os.path.normpath(arguments.src), ROOMS, arguments.edges))


if __name__ == "__main__":
    main()
