//! Run files, read so that their paths stay right wherever they are copied to.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::spec::model::catalogue;
use crate::spec::run::{BUILTIN, Data, RunConfig};
use crate::store;

/// The run file at `path`, with paths that stay right wherever it is copied to.
pub(crate) fn read_run(path: &Path) -> Result<RunConfig> {
    let mut run = RunConfig::from_toml(&store::read_text(path)?, path)?;
    anchor(&mut run);
    Ok(run)
}

/// Makes every path of a run absolute, and a name without its owner the one that the hub knows.
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
    } else if let Some(entry) = catalogue::find(&run.model).ok().filter(|_| !Path::new(&run.model).exists()) {
        run.model.clone_from(&entry.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_its_whole_name_and_a_folder_its_whole_path() {
        let anchored = |model: &str| {
            let mut run = RunConfig::of_model(model);
            anchor(&mut run);
            run.model
        };
        assert_eq!(anchored("qwen3-0.6b"), "Qwen/Qwen3-0.6B");
        assert_eq!(anchored("src"), std::env::current_dir().unwrap().join("src").to_string_lossy());
        for kept in [BUILTIN, "org/Qwen3-0.6B", "Qwen/Qwen3-0.6B@v1", "./nowhere", "nothing-of-the-kind"] {
            assert_eq!(anchored(kept), kept);
        }
    }
}
