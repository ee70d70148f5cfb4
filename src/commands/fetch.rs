//! Brings a model of the hub onto this machine, with a bar.

use std::sync::atomic::Ordering;

use crate::checkpoint::hub::{self, Part, Repo};
use crate::commands::interrupt::{interrupted, typed_again};
use crate::commands::output::Output;
use crate::error::{Error, Result};
use crate::spec::run::BUILTIN;
use crate::units::Bytes;

/// Fetches what is missing of a part of a model that is named by its name on the hub; any other model is left alone.
pub(crate) fn model(name: &str, part: Part, output: &Output) -> Result<()> {
    if name == BUILTIN || std::path::Path::new(name).exists() {
        return Ok(());
    }
    let bar = output.bar(0);
    let interrupted = interrupted();
    let fetched = hub::fetch(name, part, &mut |progress| {
        bar.set_length(progress.total >> 20);
        bar.set_position(progress.done >> 20);
        bar.set_message(format!("MiB  {}", progress.file));
        if interrupted.load(Ordering::Relaxed) {
            let kept = "what has arrived stays in the cache".into();
            return Err(Error::Interrupted { kept, resume: Some(typed_again(None)) });
        }
        Ok(())
    });
    bar.finish_and_clear();
    if let Some(fetched) = fetched?.filter(|fetched| fetched.bytes > Bytes(0)) {
        let revision = Repo::parse(name).map(|repo| repo.revision).unwrap_or_default();
        let commit = fetched.commit.get(..8).unwrap_or_default();
        output.note(&format!("`{name}`: {} fetched; {revision} is commit {commit}", fetched.bytes));
    }
    Ok(())
}
