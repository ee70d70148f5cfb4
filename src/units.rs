//! Quantities with their units, and the only place with 1024 or 1e9.
//!
//! Memory is counted in bytes and shown in binary units (GiB), because that is how RAM is sold and
//! how Metal and `getrusage` count. A figure in somebody's decimal gigabytes is converted at the
//! door with `Bytes::from_decimal_gb`.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const KIB: f64 = 1024.0;
const MIB: f64 = KIB * 1024.0;
const GIB: f64 = MIB * 1024.0;
const GIGA: f64 = 1e9;
const TERA: f64 = 1e12;

/// More than is asked for anywhere: sums and products of a few sizes up to this cannot overflow.
const LARGEST: Bytes = Bytes(1 << 50);

/// A number of bytes. Sums and products end at the largest that there is: a file that holds nonsense must not make a
/// small number of large ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// A size given in GiB (2^30 bytes), rounded to a byte.
    pub fn from_gib(gib: f64) -> Self {
        Self((gib * GIB).round() as u64)
    }

    /// A size given in MiB (2^20 bytes).
    pub fn from_mib(mib: u64) -> Self {
        Self(mib * MIB as u64)
    }

    /// A size given in KiB (1024 bytes), as Linux counts the memory of a process.
    #[cfg(not(target_os = "macos"))]
    pub(crate) fn from_kib(kib: u64) -> Self {
        Self(kib * KIB as u64)
    }

    /// The size in decimal gigabytes (1e9 bytes).
    pub(crate) fn decimal_gb(self) -> f64 {
        self.as_f64() / GIGA
    }

    /// A size given in decimal gigabytes (1e9 bytes), as mlx-lm prints them.
    pub(crate) fn from_decimal_gb(gb: f64) -> Self {
        Self((gb * GIGA).round() as u64)
    }

    /// A size given as a number of bytes that may be fractional or negative; negative becomes zero.
    pub fn from_f64(bytes: f64) -> Self {
        Self(bytes.max(0.0).round() as u64)
    }

    /// The number of bytes as a float.
    pub fn as_f64(self) -> f64 {
        self.0 as f64
    }

    /// The size in GiB (2^30 bytes).
    pub(crate) fn gib(self) -> f64 {
        self.as_f64() / GIB
    }

    /// The difference `self - other`, or zero where it would be negative.
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The size times a factor, rounded to a byte.
    pub(crate) fn scale(self, factor: f64) -> Self {
        Self::from_f64(self.as_f64() * factor)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = self.as_f64();
        // The thresholds leave room for rounding, so that 1023.97 MiB is shown as 1.0 GiB.
        let text = if b >= 0.9995 * GIB {
            let gib = b / GIB;
            if gib >= 100.0 { format!("{gib:.0} GiB") } else { format!("{gib:.1} GiB") }
        } else if b >= 0.9995 * MIB {
            let mib = b / MIB;
            if mib >= 10.0 { format!("{mib:.0} MiB") } else { format!("{mib:.1} MiB") }
        } else if b >= KIB {
            format!("{:.0} KiB", b / KIB)
        } else {
            format!("{} B", self.0)
        };
        f.pad(&text)
    }
}

impl FromStr for Bytes {
    type Err = String;

    /// Reads a size such as `8G`, `8GB`, `8 GiB` or `512M`: the unit is required and binary, as RAM is sold.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = (&text[..split], text[split..].trim());
        let value: f64 = number.parse().map_err(|_| format!("`{text}` is not a size such as 8G or 512M"))?;
        let factor = match unit.to_ascii_lowercase().as_str() {
            "g" | "gb" | "gib" => GIB,
            "m" | "mb" | "mib" => MIB,
            "t" | "tb" | "tib" => GIB * 1024.0,
            "" => return Err(format!("`{text}` has no unit; write `{number}G` for {number} GiB")),
            other => return Err(format!("unknown unit `{other}`; use M, G or T as in 8G")),
        };
        let bytes = Self::from_f64(value * factor);
        if bytes == Self(0) {
            return Err(format!("`{text}` is not more than zero"));
        }
        if bytes > LARGEST {
            return Err(format!("`{text}` is too large"));
        }
        Ok(bytes)
    }
}

impl Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Bytes {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl Mul<u64> for Bytes {
    type Output = Self;
    fn mul(self, n: u64) -> Self {
        Self(self.0.saturating_mul(n))
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self(0), Add::add)
    }
}

/// A duration in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub f64);

impl Seconds {
    /// A duration given in hours.
    pub(crate) fn from_hours(hours: f64) -> Self {
        Self(hours * 3600.0)
    }

    /// The duration in hours.
    pub(crate) fn hours(self) -> f64 {
        self.0 / 3600.0
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0;
        let text = if s < 0.0995 {
            format!("{:.0} ms", s * 1e3)
        } else if s < 9.95 {
            format!("{s:.1} s")
        } else if s < 119.5 {
            format!("{s:.0} s")
        } else if s < 3600.0 * 2.0 {
            format!("{:.0} min", s / 60.0)
        } else if s < 3600.0 * 48.0 {
            let minutes = (s / 60.0).round() as u64;
            format!("{} h {:02} min", minutes / 60, minutes % 60)
        } else {
            let days = s / 86_400.0;
            if days < 1e9 { format!("{days:.1} days") } else { format!("{days:.1e} days") }
        };
        f.pad(&text)
    }
}

/// Floating-point operations (a multiply-add counts as two), or a rate of them per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Flops(pub f64);

impl Flops {
    /// A rate given in TFLOP/s.
    pub(crate) fn from_tera(tera: f64) -> Self {
        Self(tera * TERA)
    }

    /// The number in units of 1e12: TFLOP or TFLOP/s.
    pub(crate) fn tera(self) -> f64 {
        self.0 / TERA
    }

    /// The number in units of 1e9: GFLOP or GFLOP/s.
    pub(crate) fn giga(self) -> f64 {
        self.0 / GIGA
    }
}

/// Bytes per second from a rate in decimal GB/s, as memory bandwidth is published.
pub(crate) fn bandwidth_from_gb_s(gb_s: f64) -> f64 {
    gb_s * GIGA
}

/// Energy from power held for a time, in watt-hours.
pub(crate) fn watt_hours(watts: f64, time: Seconds) -> f64 {
    watts * time.hours()
}

/// A count in groups of three digits: `36,929,536`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A share as people say it, with at most so many decimals: `99 %`, `99.9 %`.
pub(crate) fn percent(share: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", 100.0 * share);
    let short = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{short} %")
}

/// A parameter count as people say it: `1.54B`, `135M`.
pub(crate) fn short_count(n: u64) -> String {
    let n = n as f64;
    if n >= 99.5e9 {
        format!("{:.0}B", n / 1e9)
    } else if n >= 0.9995e9 {
        format!("{:.2}B", n / 1e9)
    } else if n >= 9.95e6 {
        format!("{:.0}M", n / 1e6)
    } else if n >= 0.9995e6 {
        format!("{:.1}M", n / 1e6)
    } else if n >= 1e3 {
        format!("{:.0}K", n / 1e3)
    } else {
        format!("{n:.0}")
    }
}

/// A figure with the interval it lies in with probability `level`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate<T> {
    /// Most likely value of the figure.
    pub point: T,
    /// Lower end of the interval.
    pub low: T,
    /// Upper end of the interval.
    pub high: T,
    /// Probability that the truth lies between `low` and `high`.
    pub level: f64,
}

impl<T> Estimate<T> {
    /// The same interval in another quantity; `f` must be increasing.
    pub(crate) fn map<U>(self, f: impl Fn(T) -> U) -> Estimate<U> {
        Estimate { point: f(self.point), low: f(self.low), high: f(self.high), level: self.level }
    }
}

/// A number of things, in the singular where it is one: `1 trial`, `3 trials`, `1,200 rows`.
pub(crate) fn counted(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(number as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_no_more_decimals_than_they_need() {
        let all = [(0.99, 3), (0.9995, 3), (0.12345, 1), (0.2, 0), (0.0004, 1), (1.0, 1), (-0.5, 2)];
        let expected = ["99 %", "99.95 %", "12.3 %", "20 %", "0 %", "100 %", "-50 %"];
        assert_eq!(all.map(|(share, decimals)| percent(share, decimals)), expected);
    }

    #[test]
    fn sizes_need_a_unit_and_are_binary() {
        assert_eq!("8G".parse::<Bytes>(), Ok(Bytes(8 << 30)));
        assert_eq!("8 GiB".parse::<Bytes>(), Ok(Bytes(8 << 30)));
        assert_eq!("512m".parse::<Bytes>(), Ok(Bytes(512 << 20)));
        assert_eq!("0.5T".parse::<Bytes>(), Ok(Bytes(512 << 30)));
        assert!("8".parse::<Bytes>().unwrap_err().contains("8G"));
        for bad in ["", "G", "-8G", "0G", "8X", "8G4", "0.0000000001M", "nanG", "infG", "1e3G", "2000T"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
        let long = format!("{}G", "9".repeat(400));
        assert!(long.parse::<Bytes>().unwrap_err().contains("too large"));
    }

    #[test]
    fn sums_of_nonsense_stay_large() {
        let most = Bytes(u64::MAX);
        let mut sum = most;
        sum += Bytes(5);
        assert_eq!([most + most, most * 2, [most, most].into_iter().sum(), sum], [most; 4]);
        assert_eq!(Seconds(1e308).to_string(), "1.2e303 days");
    }

    #[test]
    fn sizes_and_times_read_well() {
        let shown = [Bytes(0), Bytes(1536), Bytes(5 << 20), Bytes(300 << 20), Bytes((1 << 30) - 1), Bytes(192 << 30)]
            .map(|b| b.to_string());
        assert_eq!(shown, ["0 B", "2 KiB", "5.0 MiB", "300 MiB", "1.0 GiB", "192 GiB"]);
        let times = [0.02, 4.2, 61.0, 600.0, 7260.0, 200_000.0].map(|s| Seconds(s).to_string());
        assert_eq!(times, ["20 ms", "4.2 s", "61 s", "10 min", "2 h 01 min", "2.3 days"]);
        assert_eq!(grouped(1_622_016), "1,622,016");
        assert_eq!([999, 134_515_008, 1_543_714_304].map(short_count), ["999", "135M", "1.54B"]);
    }
}
