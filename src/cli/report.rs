//! Options of `report`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `headroom report`
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ReportArgs {
    #[command(subcommand)]
    pub of: Option<ReportOf>,
    /// Run folders [default: all under runs/]
    #[arg(value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// Name of the report [default: the run's name, or `runs` for several]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Folder of reports
    #[arg(long, value_name = "DIR", default_value = "reports")]
    pub reports: PathBuf,
    /// Folder of measurements [default: $HEADROOM_RESULTS, ./results or the user's data folder]
    #[arg(long, value_name = "DIR")]
    pub results: Option<PathBuf>,
}

/// What else can be reported on.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum ReportOf {
    /// Compare predictions with published runs, own measurements and other planners
    Accuracy(AccuracyArgs),
    /// Compare the claims of popular guides with predictions
    Guides(GuidesArgs),
}

/// `headroom report accuracy`
#[derive(Args, Clone, Debug)]
pub(crate) struct AccuracyArgs {
    /// Folder of measurements to add to the bundled published runs [default: as for `plan`]
    #[arg(long, value_name = "DIR")]
    pub results: Option<PathBuf>,
    /// Published runs in the columns of results/field/runs.csv [default: the bundled ones]
    #[arg(long, value_name = "FILE")]
    pub field: Option<PathBuf>,
    /// Folder of reports
    #[arg(long, value_name = "DIR", default_value = "reports")]
    pub reports: PathBuf,
}

/// `headroom report guides`
#[derive(Args, Clone, Debug)]
pub(crate) struct GuidesArgs {
    /// Claims file [default: the bundled claims]
    #[arg(long, value_name = "FILE")]
    pub claims: Option<PathBuf>,
    /// Folder of reports
    #[arg(long, value_name = "DIR", default_value = "reports")]
    pub reports: PathBuf,
}
