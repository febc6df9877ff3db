"""The paper's method, tensor to tensor: stages and their plan, views, fusion, weights and the skip residual."""
