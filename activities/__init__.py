"""Everything with a side effect: Temporal activities, as methods of classes that get what they need passed in."""
