"""What the learner is fed: stored demonstrations and fresh rollouts."""
