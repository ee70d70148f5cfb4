//! Packing: several whole examples in one row.

use std::collections::BTreeMap;

/// Which examples share a row of at most `cap` tokens, each cut to `cap` and none split.
///
/// Best fit decreasing, as TRL's `bfd` strategy: from the longest to the shortest, each into the fullest row that has
/// room for it. Which lengths meet depends on the lengths alone, so that the cost of a run is known from them. Rows and
/// the examples in a row come in the order of the data.
pub(crate) fn pack(lengths: &[usize], cap: usize) -> Vec<Vec<usize>> {
    let cut = |i: usize| lengths[i].min(cap);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(cut(i)), i));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    // Rows by the room that is left in them.
    let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for i in order {
        let fullest = open.range(cut(i)..).next().map(|(room, _)| *room);
        let row = fullest.and_then(|room| open.get_mut(&room)?.pop()).unwrap_or_else(|| {
            rows.push(Vec::new());
            rows.len() - 1
        });
        if let Some(room) = fullest.filter(|room| open[room].is_empty()) {
            open.remove(&room);
        }
        rows[row].push(i);
        open.entry(fullest.unwrap_or(cap) - cut(i)).or_default().push(row);
    }
    rows.iter_mut().for_each(|row| row.sort_unstable());
    rows.sort_unstable();
    rows
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_example_is_lost_or_split_and_rows_are_full(
            cap in 2usize..300,
            (lengths, other) in vec(2usize..400, 0..120).prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        ) {
            let rows = pack(&lengths, cap);
            let mut seen: Vec<usize> = rows.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            let fill = |row: &Vec<usize>| row.iter().map(|&i| lengths[i].min(cap)).sum::<usize>();
            prop_assert!(rows.iter().all(|row| !row.is_empty() && fill(row) <= cap));
            prop_assert_eq!(&rows, &pack(&lengths, cap));
            // No two rows would fit into one, so at most one is half empty or worse.
            prop_assert!(rows.iter().filter(|row| 2 * fill(row) <= cap).count() <= 1);
            // In another order the same lengths meet.
            let meet = |rows: &[Vec<usize>], lengths: &[usize]| {
                let mut all: Vec<Vec<usize>> =
                    rows.iter().map(|row| row.iter().map(|&i| lengths[i].min(cap)).collect()).collect();
                all.iter_mut().for_each(|row| row.sort_unstable());
                all.sort_unstable();
                all
            };
            prop_assert_eq!(meet(&rows, &lengths), meet(&pack(&other, cap), &other));
        }
    }

    #[test]
    fn the_longest_first_and_each_where_it_fits_best() {
        // 9 alone; 7 with 3; 6 with 4; in the order of the data.
        assert_eq!(pack(&[3, 6, 9, 4, 7], 10), [vec![0, 4], vec![1, 3], vec![2]]);
        assert_eq!(pack(&[50, 2, 3], 5), [vec![0], vec![1, 2]]);
    }
}
