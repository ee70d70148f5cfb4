//! What macOS prints, read. Apart from the asking, so that it is tested wherever there are tests.

/// GPU cores in the output of `ioreg -rc AGXAccelerator -d1`.
pub(crate) fn gpu_cores(ioreg: &str) -> Option<usize> {
    let line = ioreg.lines().find(|line| line.contains("\"gpu-core-count\""))?;
    let cores = line.rsplit_once('=')?.1.trim().parse().ok()?;
    (1..=1024).contains(&cores).then_some(cores)
}

/// Name of a chip without its vendor: `M2 Pro` of `Apple M2 Pro`.
pub(crate) fn chip_name(brand: &str) -> &str {
    brand.trim().strip_prefix("Apple ").unwrap_or(brand.trim())
}

/// Whether the output of `pmset -g batt` says that the Mac runs on its battery.
pub(crate) fn on_battery(pmset: &str) -> Option<bool> {
    let source = pmset.lines().find_map(|line| line.split_once("drawing from '"))?.1;
    Some(source.starts_with("Battery"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IOREG: &str = r#"+-o AGXAcceleratorG14X  <class AGXAcceleratorG14X, id 0x100000a2b, registered, matched, active, busy 0 (2 ms), retain 87>
    {
      "MetalPluginClassName" = "AGXG14XDevice"
      "GPUConfigurationVariable" = {"num_gps"=4,"gpu_gen"=14,"num_cores"=19,"num_mgpus"=1}
      "gpu-core-count" = 19
      "model" = "Apple M2 Pro"
    }
"#;

    #[test]
    fn recorded_text_is_read() {
        assert_eq!(gpu_cores(IOREG), Some(19));
        let pmset =
            |source: &str| format!("Now drawing from '{source}'\n -InternalBattery-0 (id=1)\t80%; discharging;\n");
        assert_eq!(["Battery Power", "AC Power"].map(|s| on_battery(&pmset(s))), [Some(true), Some(false)]);
        assert_eq!(on_battery("pmset: no"), None);
        assert_eq!([chip_name("Apple M5 Max\n"), chip_name("VirtualApple")], ["M5 Max", "VirtualApple"]);
    }

    #[test]
    fn malformed_text_is_nothing() {
        for text in
            ["", "\"gpu-core-count\"", "\"gpu-core-count\" = ", "\"gpu-core-count\" = many", "\"gpu-core-count\" = 0"]
        {
            assert_eq!(gpu_cores(text), None, "{text}");
        }
    }
}
