# powershell -ExecutionPolicy Bypass -File scripts\test.ps1 [--all] [PYTEST OPTIONS]: scripts/test.sh for Windows.
$ErrorActionPreference = "Stop"
Set-Location (Split-Path -Parent $PSScriptRoot)
if (-not (Test-Path .venv\Scripts\python.exe)) {
    python -m venv .venv
    if ($LASTEXITCODE -ne 0) { throw "the environment .venv was not made: is Python 3.11 or later installed?" }
}
$pytest = @("-m", "pytest", "-n", "auto", "--dist=loadfile", "--no-loadscope-reorder")
$options = @($args)
if ($options.Count -and $options[0] -eq "--all") { $options = @($options | Select-Object -Skip 1) }
else { $pytest += @("-m", "not slow") }
$commands = @(
    @("-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", ".[dev,offline]"),
    @("-m", "ruff", "check", "."),
    @("-m", "ruff", "format", "--check", "."),
    @("scripts\policy.py"),
    @("-m", "mypy"),
    ($pytest + $options)
)
foreach ($command in $commands) {
    & .venv\Scripts\python.exe @command
    if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
}
