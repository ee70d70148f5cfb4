//! The device that trains, as it is chosen on the command line.

use crate::error::{Error, Result};
use crate::ops::device;
use crate::spec::machine::Accelerator;

pub(crate) use crate::ops::device::{VARIABLE, chosen};

/// Settles the device for this process and those that it starts: the one that is given, else that of the environment.
///
/// # Errors
/// Where the environment names something else, and where Metal is asked for and cannot be used.
pub(crate) fn choose(given: Option<Accelerator>) -> Result<()> {
    let of_environment = || device::of_environment().map_err(|got| Error::invalid(VARIABLE, got, "`cpu` or `metal`"));
    let asked = given.map_or_else(of_environment, |given| Ok(Some(given)))?;
    let Some(asked) = asked else { return Ok(()) };
    device::choose(asked).map_err(|reason| Error::NoMetal { reason: reason.to_string() })
}

/// Why a Mac does not train on its GPU, as a clause that follows "because"; `None` where it does, and on other systems.
pub(crate) fn why_not_metal() -> Option<String> {
    if !cfg!(target_os = "macos") || chosen() == Accelerator::Metal {
        return None;
    }
    Some(device::no_metal().map_or_else(|| "the CPU was asked for".into(), ToString::to_string))
}
