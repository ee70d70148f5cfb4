//! Asking Linux.

/// Percent of the last ten seconds in which something waited for memory.
pub(crate) fn pressure() -> Option<f64> {
    parse_pressure(&std::fs::read_to_string("/proc/pressure/memory").ok()?)
}

/// Whether no mains supply is on line; `None` where the machine has no battery.
pub(crate) fn on_battery() -> Option<bool> {
    let supplies = crate::store::folders_in("/sys/class/power_supply".as_ref()).ok()?;
    let read = |file: &str, supply: &std::path::PathBuf| std::fs::read_to_string(supply.join(file)).ok();
    let of =
        |kind: &str| supplies.iter().filter(|s| read("type", s).is_some_and(|t| t.trim() == kind)).collect::<Vec<_>>();
    if of("Battery").is_empty() {
        return None;
    }
    Some(!of("Mains").into_iter().any(|s| read("online", s).is_some_and(|online| online.trim() == "1")))
}

/// `avg10` of the line `some` of /proc/pressure/memory, in percent.
fn parse_pressure(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("some"))?;
    line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_from_recorded_text() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=3\nfull avg10=0.20 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(parse_pressure(text), Some(1.5));
        for broken in ["", "some", "some avg10=x", "full avg10=1"] {
            assert_eq!(parse_pressure(broken), None);
        }
    }
}
