# powershell -ExecutionPolicy Bypass -File scripts\quickstart.ps1: the quickstart for Windows.
# It makes .venv, installs tinygpt, and runs `tinygpt quickstart`.
$ErrorActionPreference = "Stop"
Set-Location (Split-Path -Parent $PSScriptRoot)
if (-not (Test-Path .venv\Scripts\python.exe)) {
    python -c "import sys; sys.exit(sys.version_info < (3, 11))"
    if ($LASTEXITCODE -ne 0) { throw "tinygpt needs Python 3.11 or later: install it from python.org" }
    python -m venv .venv
    if ($LASTEXITCODE -ne 0) { throw "the environment .venv was not made" }
}
.venv\Scripts\python.exe -m pip install -q --disable-pip-version-check -e ".[offline,report]"
if ($LASTEXITCODE -ne 0) { throw "the installation failed" }
.venv\Scripts\tinygpt.exe quickstart @args
if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
Write-Output "" "To have the command tinygpt in this terminal:"
Write-Output "  Set-ExecutionPolicy -Scope Process Bypass; .venv\Scripts\Activate.ps1"
