"""Whether linear constraints leave any point of a box, with a proof wherever they do not."""
