# Train, evaluate and aggregate a recipe over several seeds on this machine: kava seeds, under the guide's names.
#   .\scripts\run_multi_seed.ps1 -Config llama1b_aug -Seeds 42,123,456
param(
    [Parameter(Mandatory = $true)] [string] $Config,
    [int[]] $Seeds = @(42, 123, 456),
    [string] $OutputDir = "",
    [switch] $SkipTraining,
    [switch] $SkipEvaluation,
    [switch] $UseWandB
)
$ErrorActionPreference = "Stop"

$words = @("seeds", "--config", $Config, "--seeds") + $Seeds
if ($OutputDir -ne "") { $words += @("--output_dir", $OutputDir) }
if ($SkipTraining) { $words += "--skip_training" }
if ($SkipEvaluation) { $words += "--skip_evaluation" }
if ($UseWandB) { $words += "--use_wandb" }

& python -m kava @words
exit $LASTEXITCODE
