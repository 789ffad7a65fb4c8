"""The repository's source as data: its modules, what each one imports and defines."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("jaxrnn", "experiments", "tests")


class Module(NamedTuple):
    """One file. A package is named after its folder, `path` is relative to the root."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def package(self):
        """jaxrnn, experiments or tests."""
        return self.path.parts[0]

    @property
    def basename(self):
        return self.name.rpartition(".")[2]

    @property
    def is_private(self):
        return any(is_private(part) for part in self.name.split("."))

    def public(self, *kinds):
        """Functions or classes at module level whose names have no underscore in front."""
        return [n for n in self.tree.body if isinstance(n, kinds) and not is_private(n.name)]

    def functions(self):
        """Every function, nested ones and methods too."""
        return [n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef)]

    def imports(self) -> Iterator[str]:
        """Dotted names that the code imports, inside functions too: "a.b" for `from a import b`.

        A relative import begins with a dot. A call such as `import_module("a.b")` counts."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = "." * node.level + (node.module or "")
                yield from (f"{origin}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Call) and "import" in called_name(node) and node.args:
                name = node.args[0]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield name.value


class Source(NamedTuple):
    """All modules below `root`, by name."""

    root: Path
    modules: dict[str, Module]

    def of(self, *packages) -> list[Module]:
        return [module for module in self.modules.values() if module.package in packages]

    def imported(self, module) -> set[str]:
        """The modules of the tree that one of them imports, itself apart from its own names."""
        return {found for name in module.imports() if (found := self._module_of(name))}

    def _module_of(self, name):
        while name and name not in self.modules:
            name = name.rpartition(".")[0]
        return name


def read_source(root: Path) -> Source:
    modules = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            relative = path.relative_to(root)
            name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            text = path.read_text(encoding="utf-8")
            modules[name] = Module(name, relative, text, ast.parse(text))
    return Source(root, modules)


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def called_name(call):
    """The last name in front of a call's parentheses: "load" for `np.load(...)`."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def count_code_lines(text, function):
    """Lines of a function that hold code: neither empty, nor a comment, nor its docstring."""
    lines = text.splitlines()[function.lineno - 1 : function.end_lineno]
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        first = docstring.lineno - function.lineno
        lines[first : first + docstring.end_lineno - docstring.lineno + 1] = []
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in lines)
