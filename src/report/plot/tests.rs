use super::*;
use crate::cost::ledger::{Item, Phase};
use crate::report::compare::Quantity;
use crate::units::{Bytes, Estimate};

#[test]
fn no_stand_in_colour_is_left() {
    let losses: Vec<_> = (1..200).map(|i| (i, 3.0 / i as f64)).chain([(200, f64::NAN)]).collect();
    let estimate = Estimate { point: 2e9, low: 1.9e9, high: 2.2e9, level: 0.9 };
    let rows = [Some(2e9), Some(9e9), None].map(|measured| Interval {
        label: "a <run>".into(),
        predicted: estimate,
        measured,
    });
    let resident: Vec<_> = (1..12).map(|i| Item::new(&format!("thing {i}"), i << 28)).collect();
    let phases = vec![Phase::new("loss", vec![Item::new("logits", 7 << 28)]), Phase::new("save", vec![])];
    let points = vec![(1e9, 20.0), (2e9, 40.0)];
    let clouds = [Cloud { label: "front", role: Role::Measured, points }];
    let pictures = [
        loss_curve(&losses).unwrap(),
        loss_curve(&[]).unwrap(),
        intervals(Quantity::Peak, &rows).unwrap(),
        intervals(Quantity::Speed, &[]).unwrap(),
        ledger(&resident, &phases, Some(Bytes(20 << 30))).unwrap(),
        ledger(&[], &[], None).unwrap(),
        scatter("a <run>", ["memory", "speed"], &clouds, true).unwrap(),
        scatter("none", ["memory", "speed"], &[], false).unwrap(),
    ];
    for picture in pictures {
        assert!(picture.contains("role=\"img\"") && picture.contains("viewBox"), "{picture}");
        assert!(!picture.contains("=\"#0") && !picture.contains("=\"#1"), "{picture}");
        assert!(!picture.contains("NaN") && !picture.contains("<run>"), "{picture}");
    }
    assert_eq!(named(&resident, &phases).len(), SERIES);
}

#[test]
fn nonsense_is_drawn_at_the_end_of_a_bounded_axis() {
    const HUGE: [f64; 6] = [f64::MAX, 9e307, 1e18, f64::INFINITY, f64::NAN, 5e-324];
    let short = |picture: String| assert!(picture.len() < 100_000, "{}", picture.len());
    for huge in HUGE {
        let estimate = Estimate { point: 1.0, low: -huge, high: huge, level: 0.9 };
        for measured in [None, Some(huge), Some(-huge)] {
            let row = Interval { label: "x".repeat(1000), predicted: estimate, measured };
            for quantity in [Quantity::Peak, Quantity::Speed, Quantity::TotalTime] {
                short(intervals(quantity, std::slice::from_ref(&row)).unwrap());
            }
        }
        short(loss_curve(&[(1, huge), (2, -huge), (usize::MAX, 1.0)]).unwrap());
        let clouds = [Cloud { label: "c", role: Role::Bad, points: vec![(huge, 1.0), (1.0, huge)] }];
        short(scatter("s", ["x", "y"], &clouds, true).unwrap());
    }
}

#[test]
fn what_is_drawn_does_not_grow_with_the_file() {
    let items = |n: usize, prefix: &str| (0..n).map(|i| Item::new(&format!("{prefix}{i}"), u64::MAX)).collect();
    let mut phases: Vec<Phase> = (0..100_000).map(|i| Phase::new(&format!("p{i}"), items(1, "i"))).collect();
    phases[70_000].items = items(10_000, "many");
    let picture = ledger(&items(10_000, "r"), &phases, Some(Bytes(1))).unwrap();
    assert!(picture.contains("and 99970 more phases") && picture.len() < 1_000_000, "{}", picture.len());
    let losses: Vec<_> = (0..200_000).map(|i| (i, 1.0)).collect();
    assert!(loss_curve(&losses).unwrap().len() < 1_000_000);
    // The tallest is among them, and they stay in their order.
    let phases: Vec<Phase> = (0..40).map(|i| Phase::new(&i.to_string(), vec![Item::new("x", i)])).collect();
    let (shown, hidden) = drawn(&phases);
    assert_eq!((hidden, &*shown[0].name, &*shown[29].name), (10, "10", "39"));
}

#[test]
fn steps_are_round() {
    assert_eq!([0.3, 1.0, 3.0, 180.0].map(|v| round_step(Quantity::Speed, v)), [0.5, 1.0, 5.0, 200.0]);
    assert_eq!(round_step(Quantity::Peak, 700.0 * 1048576.0), 1073741824.0);
    assert_eq!([shorten("abcdef", 4), shorten("abc", 4)], ["abc…", "abc"]);
}
