//! Run files, read so that their paths stay right wherever they are copied to.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::spec::run::{BUILTIN, Data, RunConfig};
use crate::store;

/// The run file at `path`, with paths that stay right wherever it is copied to.
pub(crate) fn read_run(path: &Path) -> Result<RunConfig> {
    let mut run = RunConfig::from_toml(&store::read_text(path)?, path)?;
    anchor(&mut run);
    Ok(run)
}

/// Makes every path of a run absolute.
pub(crate) fn anchor(run: &mut RunConfig) {
    let fix = |path: &mut PathBuf| {
        if path.as_os_str() != BUILTIN {
            *path = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
        }
    };
    match &mut run.data {
        Data::Train(train) => fix(train),
        Data::Split(split) => {
            fix(&mut split.train);
            split.valid.iter_mut().for_each(fix);
        }
    }
    run.recipe.lora.init_adapter.iter_mut().for_each(fix);
    if run.model != BUILTIN && Path::new(&run.model).is_dir() {
        let mut folder = PathBuf::from(&run.model);
        fix(&mut folder);
        run.model = folder.to_string_lossy().into_owned();
    }
}
