# powershell -ExecutionPolicy Bypass -File scripts\test.ps1: lint, types and tests for Windows, in .venv.
$ErrorActionPreference = "Stop"
Set-Location (Split-Path -Parent $PSScriptRoot)
if (-not (Test-Path .venv\Scripts\python.exe)) {
    python -m venv .venv
    if ($LASTEXITCODE -ne 0) { throw "the environment .venv was not made: is Python 3.11 or later installed?" }
}
$commands = @(
    @("-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", ".[dev,offline]"),
    @("-m", "ruff", "check", "."),
    @("-m", "ruff", "format", "--check", "."),
    @("-m", "mypy"),
    (@("-m", "pytest") + $args)
)
foreach ($command in $commands) {
    & .venv\Scripts\python.exe @command
    if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
}
