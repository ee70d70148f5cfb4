//! The chip table: what Apple has sold, compiled in, and the machines that can be named from it.

use std::sync::LazyLock;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::spec::machine::processor::Processor;
use crate::spec::machine::{Accelerator, Machine};
use crate::units::{Bytes, Flops, bandwidth_from_gb_s};

/// One bin of an Apple chip: a row of the embedded `chips.csv`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Chip {
    /// Name of the chip without the vendor, such as `M2 Pro`.
    pub chip: String,
    /// Number of GPU cores of this bin.
    pub gpu_cores: usize,
    /// Nominal memory bandwidth, in units of 1e9 bytes/s.
    pub bandwidth_gb_s: f64,
    /// Nominal f32 rate of the shader cores, TFLOP/s.
    pub fp32_tflops: f64,
    /// Published measured rate of large f32 matrix products, TFLOP/s.
    pub measured_fp32_tflops: Option<f64>,
    /// Published measured rate of large f16 matrix products without matrix units, TFLOP/s.
    pub measured_f16_tflops: Option<f64>,
    /// f16 rate of the matrix units that MLX uses, TFLOP/s; absent before M5.
    pub mlx_matrix_tflops: Option<f64>,
    /// Memory sizes the chip is sold with, GiB, separated by `|`.
    ram_options_gb: String,
    /// Macs that have this chip, separated by `|`.
    machines: String,
    /// Macs among `machines` without a fan, separated by `|`.
    fanless_machines: String,
    /// Power of the GPU under load, W.
    pub gpu_power_w: Option<f64>,
    /// Year in which the chip was first sold.
    pub year: u32,
    /// Source of the figures in this row.
    pub source: String,
}

#[derive(Deserialize)]
struct WorkingSet {
    ram_gib: f64,
    fraction: f64,
}

fn table<T: DeserializeOwned>(text: &str) -> Vec<T> {
    let rows: csv::Result<Vec<T>> = csv::Reader::from_reader(text.as_bytes()).deserialize().collect();
    rows.expect("the embedded tables are well-formed, as a test holds")
}

static CHIPS: LazyLock<Vec<Chip>> = LazyLock::new(|| table(include_str!("chips.csv")));
static WORKING_SETS: LazyLock<Vec<WorkingSet>> = LazyLock::new(|| table(include_str!("working_set.csv")));

/// Largest buffer as a share of the working set: 9,534,832,640 of 12,713,120,000 bytes on an M4 with 16 GB
/// (llama.cpp's device dump).
const MAX_BUFFER: f64 = 0.75;

/// What the system and the desktop keep for themselves, GiB: 2.75 at 8 GB, 3.25 at 16 GB, and no more than 6.
/// macOS is quoted at 3 to 6 GB; an idle headless Mac with 64 GB used about 4 (omlx#1533).
fn system_allowance(memory: Bytes) -> Bytes {
    Bytes::from_gib((2.25 + memory.gib() / 16.0).min(6.0))
}

/// What Metal recommends not to exceed on macOS 26 and 27, from reports. Between reports the share of the next
/// smaller Mac is taken. `iogpu.wired_limit_mb` overrides it on a real Mac, where Metal itself should be asked.
fn working_set(memory: Bytes) -> Bytes {
    let sets = &*WORKING_SETS;
    let row = sets.iter().rev().find(|w| w.ram_gib <= memory.gib()).or(sets.first());
    memory.scale(row.map_or(0.0, |w| w.fraction))
}

/// The first macOS whose working set is a larger share than two thirds or three quarters.
const LARGER_SINCE: u32 = 26;

impl Machine {
    /// The same Mac under this version of macOS: up to 15, Metal recommends two thirds of up to 32 GB and three
    /// quarters of more (a dozen logs in `results/field/working-set.csv`).
    pub(crate) fn under_macos(mut self, version: u32) -> Self {
        if self.accelerator == Accelerator::Metal {
            let share = if self.memory.gib() <= 32.0 { 2.0 / 3.0 } else { 0.75 };
            self.working_set =
                if version >= LARGER_SINCE { working_set(self.memory) } else { self.memory.scale(share) };
            self.max_buffer = self.working_set.scale(MAX_BUFFER);
        }
        self
    }
}

impl Chip {
    /// Memory sizes the chip is sold with, ascending.
    pub(crate) fn ram_options(&self) -> impl Iterator<Item = Bytes> {
        self.ram_options_gb.split('|').filter_map(|gib| gib.trim().parse().ok()).map(Bytes::from_gib)
    }

    /// Whether this is the plain chip of its generation: of the M line, without a suffix such as Pro.
    fn base(&self) -> bool {
        self.chip.starts_with('M') && !self.chip.contains(' ')
    }

    /// Whether every Mac with this bin is without a fan.
    fn fanless(&self) -> bool {
        let without: Vec<&str> = self.fanless_machines.split('|').filter(|m| !m.is_empty()).collect();
        !without.is_empty() && self.machines.split('|').all(|m| without.iter().any(|f| m.starts_with(f)))
    }

    fn with_memory(&self, memory: Bytes) -> Machine {
        let working_set = working_set(memory);
        Machine {
            name: format!("{}, {} GPU cores, {:.0} GiB", self.chip, self.gpu_cores, memory.gib()),
            chip: self.chip.clone(),
            cores: self.gpu_cores,
            accelerator: Accelerator::Metal,
            memory,
            working_set,
            max_buffer: working_set.scale(MAX_BUFFER),
            available: memory.saturating_sub(system_allowance(memory)),
            bandwidth: bandwidth_from_gb_s(self.bandwidth_gb_s),
            peak_flops: Flops::from_tera(self.fp32_tflops),
            // On M1 to M4 an f16 product runs at the f32 rate, so it stands in where no f32 figure was published.
            measured_flops: self.measured_fp32_tflops.or(self.measured_f16_tflops).map(Flops::from_tera),
            matrix_flops: self.mlx_matrix_tflops.map(Flops::from_tera),
            fanless: self.fanless(),
            power_w: self.gpu_power_w,
            processor: Processor::default(),
            source: self.source.clone(),
        }
    }
}

/// All bins of all chips in the embedded table, oldest first.
pub(crate) fn all() -> &'static [Chip] {
    &CHIPS
}

/// Every Mac that was sold, the slowest first, and of one speed the one with the least memory.
pub(crate) fn by_speed() -> Vec<Machine> {
    let mut macs: Vec<Machine> = all().iter().flat_map(|c| c.ram_options().map(|r| c.with_memory(r))).collect();
    macs.sort_by(|a, b| a.peak_flops.0.total_cmp(&b.peak_flops.0).then(a.memory.cmp(&b.memory)));
    macs
}

fn key(name: &str) -> String {
    let lower = name.to_lowercase();
    lower.strip_prefix("apple").unwrap_or(&lower).chars().filter(char::is_ascii_alphanumeric).collect()
}

fn listed<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in items.into_iter().map(|i| i.to_string()) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words.join(", ")
}

fn memories<'a>(chips: impl IntoIterator<Item = &'a Chip>) -> String {
    let mut sizes: Vec<Bytes> = chips.into_iter().flat_map(Chip::ram_options).collect();
    sizes.sort_unstable();
    format!("one of {} GiB", listed(sizes.iter().map(|b| format!("{:.0}", b.gib()))))
}

impl Machine {
    /// The Mac with this chip. Without `ram` the smallest it is sold with; without `gpu_cores` the smallest bin.
    pub fn named(chip: &str, ram: Option<Bytes>, gpu_cores: Option<usize>) -> Result<Self> {
        let bins: Vec<&Chip> = all().iter().filter(|c| key(&c.chip) == key(chip)).collect();
        if bins.is_empty() {
            return Err(Error::UnknownMachine { name: chip.into(), known: listed(all().iter().map(|c| &c.chip)) });
        }
        let of_cores: Vec<&Chip> =
            bins.iter().filter(|c| gpu_cores.is_none_or(|n| n == c.gpu_cores)).copied().collect();
        if let (true, Some(cores)) = (of_cores.is_empty(), gpu_cores) {
            let known = listed(bins.iter().map(|c| c.gpu_cores));
            return Err(Error::invalid("--gpu-cores", cores, format!("one of {known} with the {}", bins[0].chip)));
        }
        let ram = ram.or_else(|| of_cores.iter().flat_map(|c| c.ram_options()).min()).unwrap_or_default();
        match of_cores.iter().find(|c| c.ram_options().any(|r| r == ram)) {
            Some(bin) => Ok(bin.with_memory(ram)),
            None => {
                let must = format!("{}, as the {} is sold", memories(of_cores.iter().copied()), bins[0].chip);
                Err(Error::invalid("--ram", ram, must))
            }
        }
    }

    /// Every bin of this chip that was sold with this memory, and with these GPU cores where they are given.
    pub(crate) fn bins(chip: &str, ram: Bytes, gpu_cores: Option<usize>) -> Vec<Self> {
        let sold = |c: &&Chip| key(&c.chip) == key(chip) && c.ram_options().any(|r| r == ram);
        let bins = all().iter().filter(sold).filter(|c| gpu_cores.is_none_or(|n| n == c.gpu_cores));
        bins.map(|c| c.with_memory(ram)).collect()
    }

    /// The plainest Mac sold with this much memory: the oldest base chip with the fewest GPU cores, and where no
    /// base chip is sold with it, the chip with the least bandwidth.
    pub(crate) fn plainest(ram: Bytes) -> Result<Self> {
        let sold = || all().iter().filter(|c| c.ram_options().any(|r| r == ram));
        let base = sold().filter(|c| c.base()).min_by_key(|c| (c.year, c.gpu_cores));
        let any = || sold().min_by(|a, b| a.bandwidth_gb_s.total_cmp(&b.bandwidth_gb_s));
        base.or_else(any)
            .map(|c| c.with_memory(ram))
            .ok_or_else(|| Error::invalid("--ram", ram, format!("{}, as Macs are sold", memories(all()))))
    }

    /// The same chip (and the next larger ones where it has none) with the next more memory that is sold.
    pub(crate) fn next_larger(&self) -> Option<Self> {
        let chips = || all().iter().filter(|c| c.chip == self.chip && c.gpu_cores >= self.cores);
        let next = chips().flat_map(Chip::ram_options).filter(|r| *r > self.memory).min();
        if let Some(ram) = next {
            return Self::named(
                &self.chip,
                Some(ram),
                chips().find(|c| c.ram_options().any(|r| r == ram)).map(|c| c.gpu_cores),
            )
            .ok();
        }
        let ram = all().iter().flat_map(Chip::ram_options).filter(|r| *r > self.memory).min()?;
        Self::plainest(ram).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gib(n: f64) -> Bytes {
        Bytes::from_gib(n)
    }

    #[test]
    fn the_seed_macs_have_the_limits_that_were_reported() {
        let m1 = Machine::plainest(gib(8.0)).unwrap();
        assert_eq!((m1.name.as_str(), m1.fanless), ("M1, 7 GPU cores, 8 GiB", false));
        assert!((m1.working_set.gib() - 5.33).abs() < 0.01 && (m1.available.gib() - 5.25).abs() < 1e-9);
        let m4 = Machine::named("Apple M4", Some(gib(16.0)), Some(10)).unwrap();
        // llama.cpp: working set 12,713 MB and largest buffer 9,535 MB on this Mac.
        assert!((m4.working_set.as_f64() / 12_713_120_000.0 - 1.0).abs() < 1e-4);
        assert!((m4.max_buffer.as_f64() / 9_534_832_640.0 - 1.0).abs() < 1e-4);
        assert!((working_set(gib(96.0)).gib() - 96.0 * 0.81).abs() < 1e-6);
        // exo#1672: an M4 with 16 GB under macOS 15.6 has 11,456,825,262 bytes; an M1 Max with 64 GB has 51,539,610,000.
        let under = |m: Machine| m.under_macos(15).working_set.as_f64();
        assert!((under(m4.clone()) / 11_456_825_262.0 - 1.0).abs() < 1e-3);
        let max = Machine::named("M1 Max", Some(gib(64.0)), None).unwrap();
        assert!((under(max) / 51_539_610_000.0 - 1.0).abs() < 1e-4);
        assert_eq!(m4.clone().under_macos(26), m4);
    }

    #[test]
    fn what_is_left_open_is_the_plainest() {
        let name = |m: Result<Machine>| m.unwrap().name;
        assert_eq!(name(Machine::named("m2pro", None, None)), "M2 Pro, 16 GPU cores, 16 GiB");
        assert_eq!(name(Machine::named("M3 Max", Some(gib(64.0)), None)), "M3 Max, 40 GPU cores, 64 GiB");
        assert_eq!(name(Machine::plainest(gib(16.0))), "M1, 7 GPU cores, 16 GiB");
        assert_eq!(name(Machine::plainest(gib(18.0))), "M3 Pro, 14 GPU cores, 18 GiB");
        assert_eq!(name(Machine::plainest(gib(32.0))), "M4, 8 GPU cores, 32 GiB");
        let larger = |m: Machine| m.next_larger().map(|m| m.name);
        assert_eq!(larger(Machine::plainest(gib(8.0)).unwrap()).as_deref(), Some("M1, 7 GPU cores, 16 GiB"));
        assert_eq!(larger(Machine::plainest(gib(512.0)).unwrap()), None);
    }

    #[test]
    fn what_was_never_sold_is_refused_with_what_was() {
        let error = |m: Result<Machine>| m.unwrap_err().to_string();
        assert_eq!(
            error(Machine::named("M2 Pro", Some(gib(8.0)), None)),
            "`--ram` is 8.0 GiB, but must be one of 16, 32 GiB, as the M2 Pro is sold"
        );
        assert!(error(Machine::named("M2 Pro", None, Some(17))).contains("one of 16, 19 with the M2 Pro"));
        assert!(error(Machine::plainest(gib(10.0))).contains("one of 8, 16, 18, 24, 32"));
        assert!(Machine::named("M9", None, None).unwrap_err().hint().unwrap().contains("M1 Ultra"));
    }
}
