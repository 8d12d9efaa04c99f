//! Labels whose values users choose: so many are told apart, and the rest is `other`. Pure.

use std::collections::{HashMap, HashSet};

/// What stands for whatever came too late.
const OTHER: &str = "other";

/// The names that are told apart: those that came first, until the process ends.
#[derive(Debug)]
pub(super) struct Names {
    most_places: usize,
    most_tasks: usize,
    /// The tasks of each place, a project and a domain.
    places: HashMap<(String, String), HashSet<String>>,
    tasks: usize,
}

impl Names {
    /// None yet.
    pub(super) fn new(most_places: usize, most_tasks: usize) -> Self {
        Self { most_places, most_tasks, places: HashMap::new(), tasks: 0 }
    }

    /// What to call a place.
    pub(super) fn place(&mut self, project: &str, domain: &str) -> (String, String) {
        let place = (project.to_owned(), domain.to_owned());
        if !self.places.contains_key(&place) {
            if self.places.len() >= self.most_places {
                return (OTHER.to_owned(), OTHER.to_owned());
            }
            self.places.insert(place.clone(), HashSet::new());
        }
        place
    }

    /// What to call a place and a task there.
    pub(super) fn task(&mut self, project: &str, domain: &str, task: &str) -> (String, String, String) {
        let place = self.place(project, domain);
        let Some(tasks) = self.places.get_mut(&place) else { return (place.0, place.1, OTHER.to_owned()) };
        if !tasks.contains(task) {
            if self.tasks >= self.most_tasks {
                return (place.0, place.1, OTHER.to_owned());
            }
            tasks.insert(task.to_owned());
            self.tasks += 1;
        }
        (place.0, place.1, task.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_told_apart_and_the_rest_is_other() {
        let mut names = Names::new(2, 3);
        let mut told = |project: &str, task: &str| {
            let (project, domain, task) = names.task(project, "d", task);
            format!("{project}/{domain}/{task}")
        };
        assert_eq!(told("a", "f"), "a/d/f");
        assert_eq!(told("b", "f"), "b/d/f");
        assert_eq!(told("c", "f"), "other/other/other", "a third place");
        assert_eq!(told("a", "g"), "a/d/g");
        assert_eq!(told("a", "h"), "a/d/other", "a fourth task");
        assert_eq!(told("a", "f"), "a/d/f", "what is known stays so");
        let mut none = Names::new(0, 0);
        assert_eq!(none.place("a", "d"), ("other".to_owned(), "other".to_owned()));
    }
}
