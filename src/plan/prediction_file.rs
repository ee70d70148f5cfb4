//! What is predicted of a run as files hold it: `prediction.json`, and what `predict --json` prints.

use std::collections::HashMap;

use serde::{Deserialize, Serialize, Serializer};

use crate::cost::ledger::{Item, MemoryLedger, Phase};
use crate::plan::assessment::{Assessment, Verdict};
use crate::plan::limit::LimitKind;
use crate::predict::Basis;
use crate::units::{Bytes, Estimate, Seconds};

/// Name of the phase for memory that is held from loading to the end.
pub(crate) const RESIDENT: &str = "resident";

/// A prediction with its verdict. Intervals hold `point`, `low`, `high` and their two-sided `level`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PredictionFile {
    /// Peak of tensor allocations, bytes.
    pub peak_memory_bytes: Estimate<Bytes>,
    /// Peak footprint of the process, bytes.
    pub footprint_bytes: Estimate<Bytes>,
    /// Throughput, tokens/s, padding not counted.
    pub tokens_per_s: Estimate<f64>,
    /// Time of one optimizer step, s.
    pub step_time_s: Estimate<Seconds>,
    /// Time of the whole run, s, loading included.
    pub total_time_s: Estimate<Seconds>,
    /// Energy of the whole run, Wh, where the machine's power is known.
    pub energy_wh: Option<Estimate<f64>>,
    /// Number of optimizer steps of the whole run.
    pub steps: usize,
    /// Everything in memory at the peak, largest first.
    pub ledger: Vec<LedgerLine>,
    /// Everything in memory in every phase of a step, in their order; empty where it is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<LedgerLine>,
    /// Whether the run fits.
    pub verdict: Verdict,
    /// Probability with which each upper bound holds.
    pub confidence: f64,
    /// Limits that the run was held against.
    #[serde(default)]
    pub limits: Vec<LimitLine>,
    /// Number of trainable parameters.
    pub trainable_params: u64,
    /// Number of all parameters, adapters included.
    pub total_params: u64,
    /// Source of these numbers.
    pub basis: Basis,
    /// Whether runs have checked these figures, but none like this one: the intervals are wider.
    pub outside_what_was_checked: bool,
    /// Whether the run fails with that confidence.
    pub surely_fails: bool,
}

/// A line of a memory ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LedgerLine {
    /// Name of what takes the memory, such as `base weights`.
    pub name: String,
    /// Size of the item in memory, bytes.
    pub bytes: Bytes,
    /// Phase in which it is alive: `resident`, or the name of a phase.
    pub phase: String,
}

/// A limit that a run was held against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LimitLine {
    /// What is limited, and by whom.
    pub name: LimitKind,
    /// Amount that is not to be exceeded, bytes.
    pub limit: Bytes,
    /// Upper bound of what is held against it, bytes.
    pub predicted: Bytes,
}

fn line(item: &Item, phase: &str) -> LedgerLine {
    LedgerLine { name: item.name.clone(), bytes: item.bytes, phase: phase.into() }
}

fn whole(ledger: &MemoryLedger) -> Vec<LedgerLine> {
    let resident = ledger.resident.iter().map(|item| line(item, RESIDENT));
    let phases = ledger.phases.iter().flat_map(|phase| phase.items.iter().map(|item| line(item, &phase.name)));
    resident.chain(phases).collect()
}

impl PredictionFile {
    /// The assessment as a run folder keeps it, with every phase of a step.
    pub(crate) fn with_timeline(assessment: &Assessment) -> Self {
        Self { timeline: whole(&assessment.prediction.ledger), ..Self::from(assessment) }
    }

    /// The resident items and the phases that the lines were made from.
    pub(crate) fn phases(&self) -> (Vec<Item>, Vec<Phase>) {
        let item = |line: &LedgerLine| Item { name: line.name.clone(), bytes: line.bytes };
        let lines = if self.timeline.is_empty() { &self.ledger } else { &self.timeline };
        let resident = lines.iter().filter(|l| l.phase == RESIDENT).map(item).collect();
        let mut phases: Vec<Phase> = Vec::new();
        let mut places: HashMap<&str, usize> = HashMap::new();
        for line in lines.iter().filter(|l| l.phase != RESIDENT) {
            let place = *places.entry(&line.phase).or_insert(phases.len());
            if place == phases.len() {
                phases.push(Phase { name: line.phase.clone(), items: Vec::new() });
            }
            phases[place].items.push(item(line));
        }
        (resident, phases)
    }
}

impl From<&Assessment> for PredictionFile {
    fn from(assessment: &Assessment) -> Self {
        let p = &assessment.prediction;
        let limits = assessment.limits.iter();
        Self {
            peak_memory_bytes: p.peak_memory,
            footprint_bytes: p.footprint,
            tokens_per_s: p.tokens_per_s,
            step_time_s: p.step_time,
            total_time_s: p.total_time,
            energy_wh: p.energy_wh,
            steps: p.steps,
            ledger: p.ledger.at_peak().into_iter().map(|(item, phase)| line(item, phase)).collect(),
            timeline: Vec::new(),
            verdict: assessment.verdict,
            confidence: assessment.confidence,
            limits: limits.map(|l| LimitLine { name: l.kind, limit: l.limit, predicted: l.high }).collect(),
            trainable_params: p.trainable_params,
            total_params: p.total_params,
            basis: p.basis.clone(),
            outside_what_was_checked: p.outside,
            surely_fails: assessment.surely_fails,
        }
    }
}

impl Serialize for Assessment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        PredictionFile::from(self).serialize(serializer)
    }
}
